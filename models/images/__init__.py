"""Image files to upright RGB pixels, to tensors, and back to encoded images."""
