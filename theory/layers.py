"""A real layer for an experiment: its weights, and the Gram matrix of its inputs on calibration tokens of a seed.

Of the first block, so that nothing has to run before it. Torch is imported when a layer is read.
"""

import numpy as np

_TOKENS = 8192  # ten for each input of the widest layer of the shipped model


def layer(model: str, name: str = "mlp.down_proj", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights W (out, in) and H = X^T X / tokens (in, in), float64, of the first block's layer of that name.

    X are the layer's inputs on rows of the calibration text that follow from `seed`; `ValueError` for another name.
    """
    from suite.calibration import gather
    from suite.models.architecture import linear
    from suite.models.checkpoint import load_model
    from suite.tokens import load_tokens

    checkpoint = load_model(model)
    site = next((site for site in checkpoint.architecture.sites if name in site.layers), None)
    if site is None:
        known = ", ".join(layer for site in checkpoint.architecture.sites for layer in site.layers)
        raise ValueError(f"layer {name!r}: {model} has {known}")
    tokens = load_tokens(None, "calibration", checkpoint, min(256, checkpoint.context)).draw(_TOKENS, seed)
    block, hidden = checkpoint.block(0), checkpoint.embed(tokens.tensor())
    H = gather(checkpoint, 0, block, hidden, site).gram
    return linear(block, name).weight.detach().double().numpy(), H.numpy()


def weights(model: str, name: str = "mlp.down_proj") -> np.ndarray:
    """W (out, in), float64, of the first block's layer of that name."""
    from suite.models.architecture import linear
    from suite.models.checkpoint import load_model

    return linear(load_model(model).block(0), name).weight.detach().double().numpy()
