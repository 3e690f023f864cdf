# The services that a cluster needs beside itself: a bucket, roles, and MLflow's server on Postgres.
#
#     terraform init && terraform apply -var vpc_id=vpc-... -var 'subnet_ids=["subnet-...", "subnet-..."]'

terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
    random = {
      source  = "hashicorp/random"
      version = "~> 3.6"
    }
  }
}

provider "aws" {
  region = var.region
  default_tags {
    tags = { project = var.name }
  }
}

variable "name" {
  description = "Prefix of every name; ray_cluster.yaml names the instance profiles <name>-head and <name>-worker."
  type        = string
  default     = "latent-foundry"
}

variable "region" {
  type    = string
  default = "us-west-2"
}

variable "bucket" {
  description = "Name of the bucket; unique in the world. Empty: <name>-<account>."
  type        = string
  default     = ""
}

variable "vpc_id" {
  description = "Network of the cluster and of MLflow's server."
  type        = string
}

variable "subnet_ids" {
  description = "Two or more private subnets in different zones, with a way out (NAT) for packages."
  type        = list(string)
  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "A database subnet group needs subnets in two zones."
  }
}

variable "client_cidrs" {
  description = "Addresses that may reach MLflow's server, besides the cluster's security groups."
  type        = list(string)
  default     = []
}

variable "client_security_group_ids" {
  description = "Security groups that may reach MLflow's server: the cluster's."
  type        = list(string)
  default     = []
}

variable "mlflow_version" {
  type    = string
  default = "3.17.2"
}

variable "checkpoint_days" {
  description = "Days after which checkpoints and staged inputs are removed; they are made again where missing."
  type        = number
  default     = 60
}

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  bucket = var.bucket != "" ? var.bucket : "${var.name}-${data.aws_caller_identity.current.account_id}"
}
