"""Everything that is sent to MLflow: runs through an outbox, and the model registry."""
