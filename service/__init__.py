"""The online side: a bundle behind HTTP."""
