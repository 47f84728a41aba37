"""Figures for people: colour maps, overlays, contact sheets, network drawings."""
