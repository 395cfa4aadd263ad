"""Inference: a registered model as files, from pixels to verdict, and its MLflow face."""
