"""Explaining whole folders of pictures into rows and overlays."""
