"""Classifiers as ordered lists of named blocks with a head: registry, cutting, freezing, summary."""
