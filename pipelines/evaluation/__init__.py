"""Metrics of a model on held-out images, and checks of its explanations."""
