"""What the releases of BiLLM and PB-LLM gave on seeded matrices, and what we give.

Golden rows lie beside the repository; `binary_releases.jsonl` has runs on further ones (`make(seed, weights, *shape)`
of the same generator), by the releases at the commits that every row names, as their `run.py` drives them, on a CPU in
one thread.
"""

import json
from pathlib import Path

import golden
import pytest
import torch

from suite.methods import method_named
from suite.quantize import quantize_layer, relative_errors

HERE = Path(__file__).with_suffix(".jsonl")


def rows(method):
    """All runs of a release; golden ones first, which are slow but for one seed of Gaussian weights."""
    if not golden.FOLDER.is_dir():  # nor are there matrices
        return []
    known = [row for row in golden.rows() if row["method"] == method]
    others = [row for row in map(json.loads, HERE.read_text().splitlines()) if row["method"] == method]
    slow = [row["seed"] != 11 or row["weights"] != "gaussian" for row in known] + [False] * len(others)
    return [pytest.param(row, id=named(row), marks=[pytest.mark.slow] if late else [])
            for row, late in zip([*known, *others], slow, strict=True)]  # fmt: skip


def named(row):
    varied = ("metric", "low_frac", "groupsize", "gptq")
    config = "-".join(str(row["config"][name]) for name in varied if name in row["config"])
    return f"{row['weights']}-{row['seed']}-{config}"


def found(row, method, **options):
    """`nmse`, `hnmse` and what came out of our method on the row's matrix."""
    W, H = golden.matrices(row["seed"], row["weights"], *row.get("shape", (256, 512)))
    target = method_named(method).recipe(**options).weights
    q = quantize_layer(W.float(), target, H, torch.Generator())
    return *relative_errors(W, q.dequantize().double(), H), q
