"""What can be asked about an image: one file for each operation."""
