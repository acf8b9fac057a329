"""KVQuant: keys before the rotary embedding on tables learned by Fisher information, outliers and the first token kept.

Hooper, Kim, Mohammadzadeh, Mahoney, Shao, Keutzer, Gholami 2024, "KVQuant: Towards 10 Million Context Length LLM
Inference with KV Cache Quantization", arXiv:2401.18079: its nuq2, nuq3 and nuq4 with 1% of outliers. Keys by channel,
with ranges from calibration; values by token, with their own; one table of levels for a layer's keys and one for its
values; the first token, an attention sink, as it is. Q-Norm is left out. The tables and ranges of channels are the
model's, not the cache's: they are stored with the weights and count in `model_bytes`.
"""

from suite.grids import Integer
from suite.kv_cache.target import CacheGrid, CacheTarget, LearnedTable
from suite.methods.method import Method
from suite.recipe import Recipe, Target


def build(
    *, bits: int, outliers: float = 0.01, sinks: int = 1, window: int = 0, weight_bits: int | None = None
) -> Recipe:
    """`outliers` is the share kept in float16. `weight_bits` rounds weights too, to nearest in groups of 128."""
    keys = CacheGrid(grid=LearnedTable(bits=bits, outliers=outliers, ranges="static"))
    values = CacheGrid(grid=LearnedTable(bits=bits, outliers=outliers))
    cache = CacheTarget(keys=keys, values=values, window=window, sinks=sinks, rotary="before")
    return Recipe(weights=None if weight_bits is None else Target(Integer(bits=weight_bits)), cache=cache)


KVQUANT = Method(
    name="kvquant",
    paper="KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache Quantization",
    arxiv="2401.18079",
    needs="calibration",
    bits=tuple(range(2, 9)),
    build=build,
    grouped=False,
)
