# Three roles: the head starts and ends nodes and drives, workers read and write the bucket's ray/, MLflow its mlflow/.

data "aws_iam_policy_document" "ec2" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "bucket" {
  for_each = {
    head   = ["dvc/*", "ray/*"]
    worker = ["ray/*"]
    mlflow = ["mlflow/*"]
  }
  statement {
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.data.arn]
    condition {
      # HeadBucket and HeadObject name no prefix; without this right S3 answers 403, not 404, of what is not there yet
      test     = "StringLikeIfExists"
      variable = "s3:prefix"
      values   = concat(each.value, [for prefix in each.value : trimsuffix(prefix, "/*")])
    }
  }
  statement { # whether the bucket is there, and where
    actions   = ["s3:GetBucketLocation"]
    resources = [aws_s3_bucket.data.arn]
  }
  statement {
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = [for prefix in each.value : "${aws_s3_bucket.data.arn}/${prefix}"]
  }
}

# What Ray's autoscaler calls (https://docs.ray.io, "AWS cluster launcher"); it ends only what carries its own tag.
data "aws_iam_policy_document" "autoscaler" {
  statement {
    actions = [
      "ec2:DescribeAvailabilityZones",
      "ec2:DescribeImages",
      "ec2:DescribeInstances",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeKeyPairs",
      "ec2:DescribeSecurityGroups",
      "ec2:DescribeSubnets",
      "ec2:DescribeVpcs",
    ]
    resources = ["*"] # they take no resource
  }
  statement {
    actions   = ["ec2:RunInstances"]
    resources = ["arn:${data.aws_partition.current.partition}:ec2:${var.region}:*:*/*"]
  }
  statement {
    actions   = ["ec2:CreateTags"]
    resources = ["arn:${data.aws_partition.current.partition}:ec2:${var.region}:*:instance/*"]
  }
  statement {
    actions   = ["ec2:TerminateInstances", "ec2:StopInstances", "ec2:StartInstances"]
    resources = ["arn:${data.aws_partition.current.partition}:ec2:${var.region}:*:instance/*"]
    condition {
      test     = "StringEquals"
      variable = "ec2:ResourceTag/ray-cluster-name"
      values   = [var.name]
    }
  }
  statement {
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.node["worker"].arn]
  }
  statement {
    actions   = ["iam:GetInstanceProfile"]
    resources = [aws_iam_instance_profile.worker.arn]
  }
}

resource "aws_iam_role" "node" {
  for_each           = toset(["head", "worker", "mlflow"])
  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.ec2.json
}

resource "aws_iam_role_policy" "bucket" {
  for_each = aws_iam_role.node
  name     = "bucket"
  role     = each.value.id
  policy   = data.aws_iam_policy_document.bucket[each.key].json
}

resource "aws_iam_role_policy" "autoscaler" {
  name   = "autoscaler"
  role   = aws_iam_role.node["head"].id
  policy = data.aws_iam_policy_document.autoscaler.json
}

resource "aws_iam_instance_profile" "head" {
  name = "${var.name}-head"
  role = aws_iam_role.node["head"].name
}

resource "aws_iam_instance_profile" "worker" {
  name = "${var.name}-worker"
  role = aws_iam_role.node["worker"].name
}

resource "aws_iam_instance_profile" "mlflow" {
  name = "${var.name}-mlflow"
  role = aws_iam_role.node["mlflow"].name
}

data "aws_iam_policy_document" "mlflow_secrets" {
  statement {
    actions = ["secretsmanager:GetSecretValue"]
    resources = [
      aws_db_instance.mlflow.master_user_secret[0].secret_arn,
      aws_secretsmanager_secret.mlflow_admin.arn,
      aws_secretsmanager_secret.mlflow_flask.arn,
    ]
  }
}

resource "aws_iam_role_policy" "mlflow_secrets" {
  name   = "secrets"
  role   = aws_iam_role.node["mlflow"].id
  policy = data.aws_iam_policy_document.mlflow_secrets.json
}
