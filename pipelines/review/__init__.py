"""What a model gets wrong, and where it looked when it did."""
