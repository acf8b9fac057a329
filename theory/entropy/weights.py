"""The linear layers of a model as it is, as it was before training, and Gaussian noise of the same spreads.

Torch is imported when a model is read.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

Matrices = Mapping[str, np.ndarray]  # by the layer's full name, (out, in), float32
MATERIALS = ("noise", "initial", "trained")


@lru_cache(maxsize=2)
def trained(model: str) -> Matrices:
    """All linear layers of a model's blocks, outliers of its dial among them, widened where they are kept in less."""
    from suite.models.architecture import linear
    from suite.models.checkpoint import load_model

    checkpoint, found = load_model(model), {}
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        for layer in checkpoint.architecture.layers:
            found[checkpoint.architecture.full_name(i, layer)] = linear(block, layer).weight.detach().numpy()
    return found


def check_kept_in_fp32(model: str) -> None:
    """Raise `ValueError` where a weight of the blocks is kept in another type.

    What was rounded to 16 bits and widened again has 16 bits of zeros, which any coder finds.
    """
    import torch

    from suite.models.checkpoint import load_model

    checkpoint = load_model(model)
    for name in trained(model):
        kept = checkpoint.tensor(f"{name}.weight").dtype
        if kept != torch.float32:
            raise ValueError(f"{model}: {name} is kept as {kept}, expected torch.float32")


@lru_cache(maxsize=2)
def initial(model: str, seed: int) -> Matrices:
    """The same layers of a model of the same configuration that nothing has trained; seed 0 began the shipped one.

    `transformers` fills them from Gaussians of one spread; the global random state is left as it was.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from suite.models.checkpoint import load_model

    checkpoint = load_model(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    return {name: fresh.get_submodule(name).weight.detach().numpy() for name in trained(model)}


def noise(model: str, seed: int) -> Matrices:
    """Gaussians of the spreads (root mean squares) of the trained matrices."""
    rng = np.random.default_rng(seed)
    return {name: (spread(W) * rng.standard_normal(W.shape)).astype(np.float32) for name, W in trained(model).items()}


def material(kind: str, model: str, seed: int) -> Matrices:
    """One of `MATERIALS`; `ValueError` for another."""
    if kind not in MATERIALS:
        raise ValueError(f"material {kind!r}: expected one of {', '.join(MATERIALS)}")
    return trained(model) if kind == "trained" else (initial if kind == "initial" else noise)(model, seed)


def some_rows(matrices: Matrices, seed: int, share: float) -> Matrices:
    """Rows drawn by `seed`, a `share` of each matrix's and two at least, in their order."""
    rng, found = np.random.default_rng(seed), {}
    for name, W in matrices.items():
        wanted = min(len(W), max(2, round(share * len(W))))
        found[name] = W[np.sort(rng.choice(len(W), wanted, replace=False))]
    return found


def spread(W: np.ndarray) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(np.square(W, dtype=np.float64))))
