output "storage_path" {
  description = "cluster.storage_path"
  value       = "s3://${aws_s3_bucket.data.bucket}/ray"
}

output "dvc_remote" {
  description = "dvc remote add --default storage ..."
  value       = "s3://${aws_s3_bucket.data.bucket}/dvc"
}

output "tracking_uri" {
  description = "tracking.uri"
  value       = "http://${aws_instance.mlflow.private_ip}:5000"
}

output "mlflow_admin_secret" {
  description = "Where the password of MLflow's user admin is kept."
  value       = aws_secretsmanager_secret.mlflow_admin.name
}
