"""Scaling: a family of models in several sizes, trained at several widths on equal tokens."""
