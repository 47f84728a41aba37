"""Pictures for people: colour maps, overlays, contact sheets."""
