"""What a training leaves behind: run folders, and the same as an MLflow model."""
