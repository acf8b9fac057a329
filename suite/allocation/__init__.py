"""Allocation: which width every layer gets, from how much the model minds the layer's error."""
