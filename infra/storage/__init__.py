"""Local and S3 storage: buckets, stores, staged inputs, manifests of object versions."""
