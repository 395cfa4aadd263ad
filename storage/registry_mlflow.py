"""An old name, kept: registered models import it (docs/architecture.md, "Old names")."""

from storage.registry.client import (
    MlflowClient,
    MlflowException,
    database_uri,
    mlflow,
    prepare_database,
)

__all__ = ["MlflowClient", "MlflowException", "database_uri", "mlflow", "prepare_database"]
