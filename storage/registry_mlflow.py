"""An old name, kept: registered models import it (docs/architecture.md, "Old names")."""

# ruff: noqa: F401
from storage.registry.client import (
    MlflowClient,
    MlflowException,
    database_uri,
    mlflow,
    prepare_database,
)
