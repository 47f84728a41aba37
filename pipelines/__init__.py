"""The offline verbs: prepare data, train, track, review, explain in batches, promote, package."""
