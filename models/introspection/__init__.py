"""What happens inside a network: activations, templates, decomposition, the steps of Grad-CAM."""
