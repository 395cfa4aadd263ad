"""What is kept: the feature store (Icechunk/Zarr) and the model registry (MLflow)."""
