"""Attribution methods: Captum without a hook on the shared model, and our own CAM formulas."""
