"""HTML reports: review, comparison, inspection of one image, filter atlas."""
