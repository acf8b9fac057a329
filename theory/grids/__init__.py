"""Grids of the suite on sources of known limits: what they leave, at the bits that they really take.

Errors are mean squares over the source's variance, rates are bits per value with everything stored counted. So
`error * 4^rate` is 1 on the Gaussian's distortion-rate function, and 6.02 dB are worth a bit everywhere.
"""
