"""Quantized key-value caches: what is kept of every token's keys and values, in how many bytes, and what it costs.

`CacheTarget` says how (`target`); `QuantizedCache` (`cache`) is a cache of `transformers` that holds exactly that,
packed; `evaluate_through` (`evaluation`) has a block compute, for whole rows at once, what decoding token by token
through such a cache would.
"""
