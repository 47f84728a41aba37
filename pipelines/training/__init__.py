"""Fine-tuning in phases, from cached features to a registered model version."""
