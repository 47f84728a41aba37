"""Labelled image folders, their augmentation, and the embedded synthetic data set."""
