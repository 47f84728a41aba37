"""The training configuration and where it is loaded from."""
