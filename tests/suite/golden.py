"""Numbers of released implementations on seeded matrices, which lie beside the repository (shared/golden)."""

import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "golden"
needed = pytest.mark.skipif(not (FOLDER / "scalar.jsonl").is_file(), reason="no golden numbers beside this checkout")


def rows(name: str = "scalar") -> Iterator[dict[str, Any]]:
    """Every run of `name`.jsonl: method, config, seed, weights, and what came out; none where there is no such file."""
    if (FOLDER / f"{name}.jsonl").is_file():
        yield from map(json.loads, (FOLDER / f"{name}.jsonl").read_text().splitlines())


@cache
def _made(seed: int, weights: str, n_out: int = 256, n_in: int = 512) -> tuple[torch.Tensor, ...]:
    spec = importlib.util.spec_from_file_location("golden_matrices", FOLDER / "matrices.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(map(torch.from_numpy, module.make(seed, weights, n_out, n_in)))


def matrices(seed: int, weights: str, n_out: int = 256, n_in: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """`W` (n_out, n_in) and `H` (n_in, n_in), float64; golden numbers are for the shape that is the default."""
    W, _, H = _made(seed, weights, n_out, n_in)
    return W, H


@cache
def inputs(seed: int, weights: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`X` (2048, 512) and what a quantized model is taken to make of it, with 5% noise in every channel, float64."""
    _, X, _ = _made(seed, weights)
    noise = np.random.default_rng(seed + 1000).standard_normal(tuple(X.shape))
    return X, X + 0.05 * X.std(0, correction=0) * torch.from_numpy(noise)
