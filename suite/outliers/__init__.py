"""Outliers: what makes a model's inputs and weights hard to round, in the coordinates of one method after the other."""
