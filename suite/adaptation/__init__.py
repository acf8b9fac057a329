"""What is learned, before or after rounding: so far the training loop itself."""
