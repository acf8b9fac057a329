"""KIVI: keys by channel, values by token, the newest tokens as they are; 2 bits without any calibration.

Liu, Yuan, Jin, Zhong, Xu, Braverman, Chen, Hu 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
arXiv:2402.02750. Keys after the rotary embedding, each channel of a head in groups of 32 tokens; values in groups of 32
channels of a head (of all its channels, where it has fewer); asymmetric, with a float16 scale and a float16 zero point.
128 tokens wait in float16: all keys leave when there are as many, values one by one.

The release stores a group's least value where this stores that over the scale, and divides 0 by 0 for a constant group.
Its prompt attends to exact keys and values, whatever its length; here every query sees what it would have seen, had the
prompt come token by token, so that long texts measure what generation does.
"""

from suite.grids import Integer
from suite.kv_cache.target import CacheGrid, CacheTarget
from suite.methods.method import Method
from suite.recipe import Recipe, Target


def build(*, bits: int, window: int = 128, group: int = 32, sinks: int = 0, weight_bits: int | None = None) -> Recipe:
    """`window` tokens wait, a multiple of `group`. `weight_bits` rounds weights too, to nearest in groups of 128."""
    grid = Integer(bits=bits, group=group, convention="real-zero")
    keys, values = CacheGrid(grid=grid, along="tokens"), CacheGrid(grid=grid)
    weights = None if weight_bits is None else Target(Integer(bits=weight_bits))
    return Recipe(weights=weights, cache=CacheTarget(keys=keys, values=values, window=window, sinks=sinks))


KIVI = Method(
    name="kivi",
    paper="KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
    arxiv="2402.02750",
    needs="nothing",
    bits=tuple(range(2, 9)),
    build=build,
    grouped=False,
)
