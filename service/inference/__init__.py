"""What answers a request: predictor, model manager, batcher, admission control."""
