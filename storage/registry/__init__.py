"""MLflow: runs, models, aliases, lineage. `registry.Registry` is the way in."""
