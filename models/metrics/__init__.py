"""Checks of an attribution: faithfulness, agreement, stability, randomization, localization."""
