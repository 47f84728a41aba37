"""Everything that is said to MLflow: runs by way of an outbox, and the registry of model versions."""
