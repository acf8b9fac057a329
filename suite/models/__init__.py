"""Models: where the norms and linears are, how a checkpoint is read block by block, and the outlier dial."""
