"""Entropy and description length: what weights take in bits, which of their bits matter, and which text teaches more.

One file for a question: `puzzle` (general coders on weights), `tails` (are weights alpha-stable?), `exponents`, `codes`
(4-bit codes), `coded_against_grouped` (entropy coding against groups), `mantissa_noise`, `description_length`,
`zip_selection`.
"""
