# MLflow's server: one small instance that runs infra/mlflow/serve.sh, its records in Postgres, its artifacts in the
# bucket. Clients need no access to either. Passwords are made here and read by the instance alone.

resource "aws_security_group" "mlflow" {
  name   = "${var.name}-mlflow"
  vpc_id = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "mlflow_groups" {
  for_each                     = toset(var.client_security_group_ids)
  security_group_id            = aws_security_group.mlflow.id
  referenced_security_group_id = each.value
  ip_protocol                  = "tcp"
  from_port                    = 5000
  to_port                      = 5000
}

resource "aws_vpc_security_group_ingress_rule" "mlflow_cidrs" {
  for_each          = toset(var.client_cidrs)
  security_group_id = aws_security_group.mlflow.id
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 5000
  to_port           = 5000
}

resource "aws_vpc_security_group_egress_rule" "mlflow" {
  security_group_id = aws_security_group.mlflow.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

resource "aws_security_group" "database" {
  name   = "${var.name}-database"
  vpc_id = var.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "database" {
  security_group_id            = aws_security_group.database.id
  referenced_security_group_id = aws_security_group.mlflow.id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_db_subnet_group" "mlflow" {
  name       = "${var.name}-mlflow"
  subnet_ids = var.subnet_ids
}

resource "aws_db_instance" "mlflow" {
  identifier                  = "${var.name}-mlflow"
  engine                      = "postgres"
  engine_version              = "16"
  instance_class              = "db.t4g.micro"
  allocated_storage           = 20
  max_allocated_storage       = 200
  storage_encrypted           = true
  db_name                     = "mlflow"
  username                    = "mlflow"
  manage_master_user_password = true
  db_subnet_group_name        = aws_db_subnet_group.mlflow.name
  vpc_security_group_ids      = [aws_security_group.database.id]
  publicly_accessible         = false
  backup_retention_period     = 14
  deletion_protection         = true
  skip_final_snapshot         = false
  final_snapshot_identifier   = "${var.name}-mlflow-last"
}

resource "random_password" "mlflow_admin" {
  length  = 32
  special = false
}

resource "random_password" "mlflow_flask" {
  length  = 64
  special = false
}

resource "aws_secretsmanager_secret" "mlflow_admin" {
  name = "${var.name}/mlflow-admin"
}

resource "aws_secretsmanager_secret_version" "mlflow_admin" {
  secret_id     = aws_secretsmanager_secret.mlflow_admin.id
  secret_string = random_password.mlflow_admin.result
}

resource "aws_secretsmanager_secret" "mlflow_flask" {
  name = "${var.name}/mlflow-flask"
}

resource "aws_secretsmanager_secret_version" "mlflow_flask" {
  secret_id     = aws_secretsmanager_secret.mlflow_flask.id
  secret_string = random_password.mlflow_flask.result
}

data "aws_ssm_parameter" "debian" {
  name = "/aws/service/debian/release/12/latest/amd64"
}

resource "aws_instance" "mlflow" {
  ami                         = data.aws_ssm_parameter.debian.value
  instance_type               = "t3.small"
  subnet_id                   = var.subnet_ids[0]
  vpc_security_group_ids      = [aws_security_group.mlflow.id]
  iam_instance_profile        = aws_iam_instance_profile.mlflow.name
  associate_public_ip_address = false
  user_data_replace_on_change = true # it holds no state

  metadata_options {
    http_tokens = "required"
  }

  root_block_device {
    encrypted   = true
    volume_size = 20
  }

  user_data = templatefile("${path.module}/mlflow.sh.tftpl", {
    region         = var.region
    version        = var.mlflow_version
    bucket         = aws_s3_bucket.data.bucket
    database_host  = aws_db_instance.mlflow.address
    database_login = aws_db_instance.mlflow.master_user_secret[0].secret_arn
    admin          = aws_secretsmanager_secret.mlflow_admin.arn
    flask          = aws_secretsmanager_secret.mlflow_flask.arn
    serve          = file("${path.module}/../mlflow/serve.sh")
  })

  depends_on = [
    aws_iam_role_policy.mlflow_secrets,
    aws_secretsmanager_secret_version.mlflow_admin,
    aws_secretsmanager_secret_version.mlflow_flask,
  ]
}
