"""Spectra of a model's Hessians, and where errors of quantization lie in them.

Three matrices are told apart: X^T X of a layer's inputs, the Gauss-Newton matrix of the mean token loss (for the
softmax the Fisher information), and its full Hessian.
"""
