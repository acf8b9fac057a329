"""What is learned, before or after rounding: the training loop itself, and the tuning of blocks."""
