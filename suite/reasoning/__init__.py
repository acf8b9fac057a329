"""A task with known answers: problems of several steps, written out, and what a model makes of them as bits fall."""
