r"""The waterfall: where a quantized layer's bits go, from what it stores down to what its error would have to cost.

The limit is reverse water-filling. Rows w_i of a layer are taken for Gaussian, independent, of variance v_i, and the
error is measured in H, so that in the eigenbasis of H the source has components of variance v_i lambda_k; R(D) is the
least rate for a mean D over all of them. Weights are no Gaussian samples: a layer may lie below it.

A layer stores R bits for a weight and has the error D = tr(E H E^T) / (m n). For integers of steps s_ij, rounded with
feedback whose pivots are d_j (`theory.bounds.pivots`) or to nearest, R - R(D) is, with means over all weights:

    scale storage   what is stored beside the codes
    idle codes      the codes' width less their empirical entropy
    source          that entropy less a Gaussian's in steps so fine, log2(2 pi e) / 2 + mean log2(sqrt(v_i) / s_ij)
    shaping         log2(2 pi e / 12) / 2 = .2546: cubes instead of balls
    pivots          half the log of the mean of s_ij^2 q_j over the geometric mean of s_ij^2 d_j; q = d with feedback,
                    and without it q_j = H_jj, whose mean is that of H's eigenvalues
    cell            half the log of the error, clipped values counted as half a step, over mean(s_ij^2 q_j) / 12
    clipping        half the log of all of the error over that
    damping         pivots are those of H + lambda I, and so are both errors above: half the logs of the geometric means
                    of pivots, with it over without, and of the error in H over that in H + lambda I
    water level     what the high-rate form of R(D), half the log of the geometric mean of v_i lambda_k over D, has more
                    than R(D): nothing, or less than nothing where components lie under water
    calibration     R(D) in the Gram matrix that was rounded under less R(D) in that of other text

The sum is R - R(D) whatever the terms are, since each begins where the last one ends. High-rate theory predicts 0 for
source, cell, clipping and water level: where they are not small, it does not hold. Without feedback the error is not
a sum over columns, and "cell" has what neighboring columns' errors do to each other. Other grids have no steps: there
everything between the codes' entropy and R(D) is one term.

For a whole model there is one term more. Were KL linear in layers' errors, log2(KL / predicted KL) / 2 is what the
network's nonlinearity costs: bits by which the limit would have to move to make up for it. The prediction is that of
`theory.bounds.malinovskii_2025_linearity`, by outputs.

Imports no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from theory.bounds.pivots import Factored, factored, targets_missed
from theory.rate_distortion import reverse_waterfilling_rate

if TYPE_CHECKING:
    import torch

    from suite.quantized import Quantized
    from suite.recipe import Recipe, Target
    from suite.tokens import Tokens

SHAPING_BITS = float(np.log2(2 * np.pi * np.e / 12) / 2)
TERMS = ("scale storage", "idle codes", "source", "shaping", "pivots", "cell", "clipping", "damping", "water level",
         "calibration")  # fmt: skip
UNSPLIT = ("scale storage", "idle codes", "grid and rounding", "calibration")
HIGH_RATE = ("source", "cell", "clipping", "water level")  # what vanishes with the steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A layer's `terms` in bits per weight, by name, which add up to `distance` = `stored` - R(D)."""

    layer: str
    n_weights: int
    stored: float
    distance: float
    terms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Gram:
    """A Gram matrix `H` (in, in), float64, with its eigenvalues (in,)."""

    H: np.ndarray
    eigenvalues: np.ndarray

    @classmethod
    def of(cls, H: np.ndarray) -> "Gram":
        """With eigenvalues at least 1e-9 of their mean, as those of a matrix of few tokens may not be known better."""
        return cls(H, np.maximum(np.linalg.eigvalsh(H), 1e-9 * np.trace(H) / len(H)))


def mean_error(E: np.ndarray, H: np.ndarray) -> float:
    """tr(E H E^T) over the number of weights, for `E` (out, in) and `H` (in, in)."""
    return float(np.einsum("ij,ij->", E @ H, E)) / E.size


def limit_bits(W: np.ndarray, gram: Gram, D: float) -> float:
    """R(D), bits per weight, of Gaussian rows as large as those of `W` (out, in), at a mean error `D` > 0.

    >>> limit_bits(np.ones((1, 2)), Gram.of(np.diag([4.0, 1.0])), 1.0)
    0.5
    """
    variances = np.outer(np.square(W).mean(1), gram.eigenvalues).ravel()
    return float(reverse_waterfilling_rate(variances, np.array(D), np.ones(len(variances))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """How an integer layer was rounded, by input channel.

    `steps` (out, in); `missed` (out, in), how far each value landed from what it was rounded from; pivots `d` (in,) of
    H + `damping` I, and what a squared step costs, `q` (in,): the pivots again, or without feedback H's diagonal.
    """

    steps: np.ndarray
    missed: np.ndarray
    d: np.ndarray
    q: np.ndarray
    damping: float


def integer_terms(W: np.ndarray, E: np.ndarray, gram: Gram, how: Rounded) -> dict[str, float]:
    """The terms between the entropy of a Gaussian's codes and R(D), in bits: "shaping" to "water level".

    `W` and `E` = W - Q are (out, in), float64; no row of W may be zero, and E not all of them.
    """
    D, squares = mean_error(E, gram.H), how.steps**2
    damped = D + how.damping * float(np.square(E).mean())
    expected = float((squares * how.q).mean()) / 12
    inside = damped - float((np.maximum(how.missed**2 - squares / 4, 0) * how.q).mean())
    pivots, eigenvalues = float(np.log2(how.d).mean()), float(np.log2(gram.eigenvalues).mean())
    v = float(np.log2(np.square(W).mean(1)).mean())
    return {
        "shaping": SHAPING_BITS,
        "pivots": (float(np.log2(12 * expected)) - float(np.log2(squares).mean()) - pivots) / 2,
        "cell": float(np.log2(inside / expected)) / 2,
        "clipping": float(np.log2(damped / inside)) / 2,
        "damping": (pivots - eigenvalues + float(np.log2(D / damped))) / 2,
        "water level": (v + eigenvalues - float(np.log2(D))) / 2 - limit_bits(W, gram, D),
    }


def gaussian_code_bits(W: np.ndarray, steps: np.ndarray) -> float:
    """Bits a weight that Gaussian rows as large as those of `W` (out, in) take in `steps` (out, in), at high rate."""
    v = np.square(W).mean(1)
    return float(np.log2(2 * np.pi * np.e) / 2 + np.log2(v).mean() / 2 - np.log2(steps).mean())


def split_of(
    layer: str, W: "torch.Tensor", found: "Quantized", target: "Target", told: Gram, asked: Gram
) -> Split:  # fmt: skip
    """The waterfall of a layer `W` (out, in) that was rounded as `target` under the Gram matrix `told`.

    `asked` is that of other text, in which its distance is measured. Raises `ValueError` for a matrix with no error, or
    with rows of zeros.
    """
    from suite.grids.integer import FittedInteger

    w, E = (x.detach().double().numpy() for x in (W, W - found.dequantize()))
    if not (E.any() and np.square(w).mean(1).all()):
        raise ValueError(f"{layer}: expected an error and no row of zeros")
    stored, entropy = found.n_bits / w.size, found.entropy_bits / w.size
    codes = entropy - (found.n_bits - found.grid.n_bits + found.grid.beside_bits) / w.size
    at, at_asked = (limit_bits(w, gram, mean_error(E, gram.H)) for gram in (told, asked))
    terms = {"scale storage": entropy - codes, "idle codes": stored - entropy}
    if isinstance(found.grid, FittedInteger) and found.frame is None and found.side is None:
        how = _rounded(w, E, told.H, found, target)
        terms |= {"source": codes - gaussian_code_bits(w, how.steps), **integer_terms(w, E, told, how)}
    else:
        terms["grid and rounding"] = codes - at
    terms["calibration"] = at - at_asked
    return Split(layer=layer, n_weights=w.size, stored=stored, distance=stored - at_asked, terms=terms)


def _rounded(w: np.ndarray, E: np.ndarray, H: np.ndarray, found: "Quantized", target: "Target") -> Rounded:
    import torch

    from suite.rounding import Feedback
    from suite.rounding.feedback import factor

    grid, rounding = found.grid, target.rounding
    steps = grid.layout.expand(grid.scale).double().abs().expand(w.shape).numpy()  # type: ignore[attr-defined]
    if not isinstance(rounding, Feedback):
        d = factored(H, damping=1e-9).d
        return Rounded(steps=steps, missed=E, d=d, q=np.diag(H), damping=0.0)
    R, perm, _ = factor(torch.from_numpy(H), rounding.order, rounding.damping)
    known = Factored(R.numpy(), perm.numpy())
    damping = float((np.square(known.R).sum() - np.trace(H)) / len(H))  # what was added to the diagonal
    return Rounded(steps=steps, missed=targets_missed(E, known), d=known.by_channel, q=known.by_channel,
                   damping=damping)  # fmt: skip


Pick = tuple[str, float]  # a method and its width


def splits_of(
    model: str, picks: Sequence[Pick], told: "Tokens", asked: "Tokens", *, seed: int = 0, blocks: int | None = None
) -> Iterator[tuple[Pick, Split]]:
    """The waterfalls of a model's layers, or those of its first `blocks`: rounded as methods round, on the text `told`.

    Every layer is rounded on the unquantized model's inputs, so that what layers do to each other is left out. Raises
    `ValueError` for a method that changes coordinates, or learns: its layers are no longer those that it began with.
    """
    from suite.calibration import gather
    from suite.models.architecture import linear
    from suite.models.checkpoint import load_model
    from suite.quantize import generator_for, quantize_layer

    recipes = {pick: _recipe(*pick) for pick in picks}
    checkpoint = load_model(model)
    texts = [checkpoint.embed(told.tensor()), checkpoint.embed(asked.tensor())]
    for i in range(min(checkpoint.n_blocks, blocks or checkpoint.n_blocks)):
        block = checkpoint.block(i)
        for site in checkpoint.architecture.sites:
            grams = [gather(checkpoint, i, block, hidden, site).gram for hidden in texts]
            known = [Gram.of(gram.double().numpy()) for gram in grams]
            for layer in site.layers:
                name, W = checkpoint.architecture.full_name(i, layer), linear(block, layer).weight.detach()
                n_out, n_in = W.shape
                for pick, recipe in recipes.items():
                    target, generator = recipe.target_of(name), generator_for(seed, name)
                    if target is not None:
                        frame = recipe.incoherence.fit((n_out, n_in), generator) if recipe.incoherence else None
                        found = quantize_layer(W, target, grams[0], generator, recipe.coding, None, frame)
                        yield pick, split_of(name, W, found, target, *known)
        texts = [checkpoint.run(i, block, hidden) for hidden in texts]


def _recipe(method: str, bits: float) -> "Recipe":
    from suite.methods import method_named

    recipe = method_named(method).recipe(bits=bits)
    if recipe.transforms or recipe.adaptation or recipe.weights is None:
        raise ValueError(f"{method}: a waterfall is of weights that are rounded in their own coordinates")
    return recipe


def pooled(splits: list[Split]) -> dict[str, float]:
    """Means over the weights of all layers: "stored", "distance" and every term, bits per weight."""
    weights = np.array([split.n_weights for split in splits], dtype=float)
    names = list(dict.fromkeys(name for split in splits for name in split.terms))
    columns = {name: [split.terms[name] for split in splits] for name in names}
    columns |= {"stored": [s.stored for s in splits], "distance": [s.distance for s in splits]}
    return {name: float(np.average(column, weights=weights)) for name, column in columns.items()}
