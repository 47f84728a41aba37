"""What runs the blocks of a network: torch itself or OpenVINO."""
