"""The command ``lucida``."""
