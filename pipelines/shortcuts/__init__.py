"""What a model relies on that is not its object: proposed from its maps, decided by covering and pasting."""
