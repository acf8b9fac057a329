"""Two bits for keys and values: what it costs a model, and along which axis each of them wants its ranges.

Liu, Yuan, Jin, Zhong, Xu, Braverman, Chen, Hu 2024, "KIVI", arXiv:2402.02750, rounds keys by channel and values by
token because keys have outlier channels and values do not; Hooper et al. 2024, "KVQuant", arXiv:2401.18079, rounds keys
by channel before the rotary embedding, on learned levels with 1% of outliers apart. Here all four pairs of axes are set
against each other: asymmetric integers in groups of 32, along the tokens of a channel or the channels of a token, each
at the same 3 bits a value with its scale and zero point in float16.

Caches are those of the suite, as decoded token by token; 32 tokens wait exactly, and what is measured are the
predictions of the second half of each row, where most of what attention sees is rounded. A seed draws the rows, and the
calibration rows of learned tables. Divergences are from the same model with its cache as it comes.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

if TYPE_CHECKING:
    import torch

    from suite.kv_cache.codec import Tables
    from suite.kv_cache.target import CacheTarget
    from suite.models.checkpoint import Checkpoint
    from suite.tokens import Tokens

WIDTHS = (2, 3, 4)
_GROUP = 32  # as KIVI's
_ROWS, _CALIBRATION_ROWS, _LENGTH = 16, 16, 256
_AXES = {"channel": "tokens", "token": "channels"}  # ranges by channel are of groups that run along tokens


def caches(bits: int) -> "dict[str, CacheTarget]":
    """By name, caches of this width: every pair of axes, KIVI with all but 32 tokens rounded, and KVQuant."""
    from suite.grids import Integer
    from suite.kv_cache.target import CacheGrid, CacheTarget
    from suite.methods import method_named

    def side(axis: str) -> CacheGrid:
        grid = Integer(bits=bits, group=_GROUP, convention="real-zero")
        return CacheGrid(grid=grid, along=_AXES[axis])  # type: ignore[arg-type]

    found = {f"keys by {k}, values by {v}": CacheTarget(keys=side(k), values=side(v), window=_GROUP)
             for k in _AXES for v in _AXES}  # fmt: skip
    for name, options in (("kivi", {"window": _GROUP}), ("kvquant", {})):
        cache = method_named(name).recipe(bits=bits, **options).cache
        assert cache is not None
        found[name] = cache
    return found


def costs(setting: Setting, bits: int) -> dict[str, tuple[float, float]]:
    """Of the setting's seed, by cache: the divergence in nats, and the perplexity over that without rounding, less 1.

    Both are means over the predictions of the second half of each of 16 rows.
    """
    rows = max(2, round(_ROWS * setting.effort))
    known = caches(bits)
    found = {cache: _cost(setting.model, cache, rows, setting.seed) for cache in dict.fromkeys(known.values())}
    return {name: found[cache] for name, cache in known.items()}


def _cost(model: str, cache: "CacheTarget", rows: int, seed: int) -> tuple[float, float]:
    from suite.evaluation import Ended, compare
    from suite.kv_cache.fisher import learn

    checkpoint, text, calibration, exact = _opened(model, rows, seed)
    tables = learn(checkpoint, calibration, cache, 1)
    rounded = _hidden(checkpoint, text.tensor(), cache, tables)
    paired = compare(Ended(checkpoint, rounded), Ended(checkpoint, exact), text.tensor())
    assert paired.paired is not None
    late = slice(text.rows.shape[1] // 2, None)
    rise = float((paired.nll - paired.paired.nll)[:, late].mean())
    return float(paired.paired.kl[:, late].mean()), float(np.expm1(rise))


@lru_cache(maxsize=1)
def _opened(model: str, rows: int, seed: int) -> "tuple[Checkpoint, Tokens, Tokens, torch.Tensor]":
    from suite.models.checkpoint import load_model
    from suite.tokens import load_tokens

    checkpoint = load_model(model)
    length = min(_LENGTH, checkpoint.context)
    parts = [load_tokens(None, part, checkpoint, length) for part in ("evaluation", "calibration")]
    drawn = [part.draw(n * length, seed) for part, n in zip(parts, (rows, _CALIBRATION_ROWS), strict=True)]
    return checkpoint, *drawn, _hidden(checkpoint, drawn[0].tensor(), None, ())  # type: ignore[return-value]


def _hidden(
    checkpoint: "Checkpoint", tokens: "torch.Tensor", cache: "CacheTarget | None", tables: "Sequence[Tables]"
) -> "torch.Tensor":
    """The last block's outputs (rows, length, hidden) through a cache, or without one."""
    from suite.kv_cache.evaluation import evaluate_through

    hidden = checkpoint.embed(tokens)
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        if cache is not None:
            evaluate_through(block, checkpoint.config, cache, tables[i])
        hidden = checkpoint.run(i, block, hidden)
    return hidden


class _Seen:
    """Stands where a block looks for its cache, and keeps the keys and values that pass."""

    def __init__(self) -> None:
        self.states: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(
        self, key_states: "torch.Tensor", value_states: "torch.Tensor", *_: object
    ) -> "tuple[torch.Tensor, ...]":
        self.states.append((key_states, value_states))
        return key_states, value_states


def channel_spread(setting: Setting) -> dict[str, float]:
    """Of keys and of values the largest channel's root mean square over the median one's, the median over heads.

    A head of channels that are alike has about 1 to 2; ranges by channel are made for heads with outlier channels.
    """
    import torch

    from suite.kv_cache.evaluation import take_cache

    checkpoint, text, _, _ = _opened(setting.model, max(2, round(_ROWS * setting.effort)), setting.seed)
    hidden, found = checkpoint.embed(text.tensor()), []
    for i in range(checkpoint.n_blocks):
        block, seen = checkpoint.block(i), _Seen()
        take_cache(block.get_submodule("self_attn"), seen)
        hidden = checkpoint.run(i, block, hidden)
        sides = (torch.cat(parts).double() for parts in zip(*seen.states, strict=True))
        sizes = torch.stack([states.square().mean((0, 2)).sqrt() for states in sides])  # (2, heads, d)
        found.append(sizes.amax(-1) / sizes.median(-1).values)
    keys, values = torch.cat(found, 1).median(-1).values.tolist()
    return {"keys": keys, "values": values}


def _measure(setting: Setting) -> list[Point]:
    points = []
    for bits in WIDTHS if setting.effort >= 1 else WIDTHS[:1]:
        found = [costs(replace(setting, seed=seed), bits) for seed in seeds_of(setting)]
        points += [replicated(name, bits, [one[name][0] for one in found]) for name in found[0]]
    return points


def _sentence(points: Sequence[Point]) -> str:
    parts = [f"{p.y:.2g} nats ({p.series})" for p in points if p.x == 2]
    return f"At 2 bits a rounded cache moves predictions by {', '.join(parts)}."


EXPERIMENT = Experiment(
    name="cache-axes",
    title="What rounding keys and values costs, by the axis of their ranges",
    source="Liu et al. 2024, arXiv:2402.02750; Hooper et al. 2024, arXiv:2401.18079",
    x="bits of keys and values",
    y="KL from the exact cache, nats a token",
    measure=_measure,
    sentence=_sentence,
    log="y",
    tier="full",
    interval=INTERVAL,
    on_model=True,
)
