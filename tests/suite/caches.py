"""Kinds of quantized caches, with windows and groups shorter than the rows of tests, and ways through them."""

import tiny
import torch

from suite.grids import ClipRatio, Integer, PowerOfTwo, Scaled, TwoLevel
from suite.kv_cache.evaluation import evaluate_through
from suite.kv_cache.target import CacheGrid, CacheTarget, LearnedTable
from suite.methods import method_named

MX = Scaled(element="e2m3", group=8, scale=PowerOfTwo())
NVFP4 = Scaled(element="e2m1", group=16, scale=TwoLevel(matrix=False))


def of(grid, **options):
    """Keys and values alike, channel groups."""
    rotate = options.pop("rotate", False)
    side = CacheGrid(grid=grid, rotate=rotate)
    return CacheTarget(keys=side, values=side, **options)


def quarot(bits):
    """QuaRot's cache on a model whose values are not rotated by its weights."""
    return of(Integer(bits=bits, group="row", clip=ClipRatio(0.95)), rotate=True)


KINDS = {
    "kivi": method_named("kivi").recipe(bits=2, window=16, group=8).cache,
    "kivi with sinks": method_named("kivi").recipe(bits=3, window=8, group=4, sinks=3).cache,
    "kvquant": method_named("kvquant").recipe(bits=2).cache,
    "kvquant, windowed, no outliers": method_named("kvquant").recipe(bits=4, window=6, outliers=0.0, sinks=0).cache,
    "quarot": quarot(4),
    "nvfp4": of(NVFP4),
    "mx, windowed": of(MX, window=5, exact_bits=32),
    "values before keys": CacheTarget(
        keys=CacheGrid(grid=Integer(bits=4, group=4, convention="full-range"), along="tokens", rotate=True),
        values=CacheGrid(grid=LearnedTable(bits=3, outliers=0.1)), window=12, rotary="before",
    ),
}  # fmt: skip


def at_once(checkpoint, ids, target, tables):
    """Logits of whole rows evaluated at once, and what stands for the caches of the blocks."""
    shots = []

    def attach(i, block):
        shots.append(evaluate_through(block, checkpoint.config, target, tables[i]))

    return tiny.logits_of(checkpoint, ids, attach), shots


@torch.no_grad()
def in_runs(model, ids, cache, sizes):
    """Logits of the same rows fed to the whole model in runs of tokens."""
    return torch.cat([model(run, past_key_values=cache).logits for run in ids.split(sizes, dim=1)], dim=1)
