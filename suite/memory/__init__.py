"""Memory: what a training holds, measured part by part, and the formula that predicts it."""
