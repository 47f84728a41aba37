"""Why the model said so: explanations as frozen values, computed through Captum without a hook on the
shared model.
"""
