"""What a model is, what it sees, and why it said so."""
