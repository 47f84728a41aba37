"""Batch explain jobs: any number of images into rows and overlays."""
