"""What single flipped bits do to a model's predictions, by format, by place, and with weights rotated or not.

All linear layers of the blocks are stored in a format (`theory.limits.bit_flips`); one bit of one of them is flipped,
and the predictions are compared with those of the same stored model before. A flip adds a row vector to one row of a
matrix, and so x . added to one channel of its outputs: copies of a text row go through the model together, each with a
flip of its own. Rotated, a layer stores W Q for a Hadamard matrix Q over sqrt(n) and reads Q^T x (QuaRot's form, layer
by layer): a flip's vector is turned back by Q^T.

A divergence is in nats a token, at most that of a guess, ln of the vocabulary, which also stands for what is not
finite. Flips are drawn for every place alike, and weighted by the place's share of stored bits where a bit at random is
spoken of.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from theory.experiment import Experiment, Point, Setting
from theory.limits.bit_flips import FORMATS, Format, Place, Stored, median_change, places
from theory.replication import INTERVAL, replicated, seeds_of

if TYPE_CHECKING:
    import torch

    from suite.models.checkpoint import Checkpoint
    from suite.tokens import Tokens

WAYS: tuple[tuple[Format, bool], ...] = (*((form, False) for form in FORMATS), ("bf16", True), ("int4", True))
_FLIPS = 4  # of each place
_TEXTS, _LENGTH = 4, 64  # rows of text, of which each flip has one
_AT_ONCE = 64
HARM_NATS = 0.1  # from which on a flip counts as harm


@dataclass(frozen=True, slots=True)
class Flip:
    """A bit that was flipped: where, |dw| over the matrix's standard deviation, and the divergence in nats.

    Of a scale the change is the median over its weights that are not 0.
    """

    place: Place
    change: float
    nats: float


@dataclass(frozen=True, slots=True)
class _Added:
    place: Place
    layer: str
    row: int
    vector: np.ndarray
    change: float


def flips(setting: Setting, form: Format, rotated: bool = False) -> list[Flip]:
    """For every place of a format four flips, of layers, weights and texts that the setting's seed draws."""
    import torch

    checkpoint, tokens = _opened(setting.model)
    text = tokens.draw(_TEXTS * tokens.rows.shape[1], setting.seed).tensor()
    rng = np.random.default_rng((setting.seed, FORMATS.index(form), rotated))
    held, added = _drawn(checkpoint, form, rotated, rng, max(1, round(_FLIPS * setting.effort)))
    texts = torch.from_numpy(rng.integers(len(text), size=len(added)))
    base = _logits(checkpoint, held, text, []).log_softmax(-1)
    nats = []
    for at in range(0, len(added), _AT_ONCE):
        chosen = texts[at : at + _AT_ONCE]
        found = _logits(checkpoint, held, text[chosen], added[at : at + _AT_ONCE])
        nats += _divergences(base[chosen], found.log_softmax(-1))
    return [Flip(one.place, one.change, n) for one, n in zip(added, nats, strict=True)]


@lru_cache(maxsize=1)
def _opened(model: str) -> "tuple[Checkpoint, Tokens]":
    from suite.models.checkpoint import load_model
    from suite.tokens import load_tokens

    checkpoint = load_model(model)
    return checkpoint, load_tokens(None, "evaluation", checkpoint, min(_LENGTH, checkpoint.context))


def _divergences(log_p: "torch.Tensor", log_q: "torch.Tensor") -> list[float]:
    """The mean over tokens of KL(p || q) of each row, no more than a guess's and no less than 0."""
    import torch

    guess = float(np.log(log_p.shape[-1]))
    kl = (log_p.exp() * (log_p - log_q)).double().sum(-1).mean(-1)
    found: list[float] = torch.nan_to_num(kl, nan=guess, posinf=guess).clamp(0, guess).tolist()
    return found


def _drawn(
    checkpoint: "Checkpoint", form: Format, rotated: bool, rng: np.random.Generator, count: int
) -> "tuple[dict[str, torch.Tensor], list[_Added]]":
    """The weights of all layers as stored, in their own coordinates, and the flips."""
    import torch

    from suite.models.architecture import linear
    from suite.transforms.maps import Hadamard

    blocks = [checkpoint.block(i) for i in range(checkpoint.n_blocks)]
    names = [(i, layer) for i in range(checkpoint.n_blocks) for layer in checkpoint.architecture.layers]
    sizes = np.array([linear(blocks[i], layer).weight.numel() for i, layer in names], dtype=float)
    wanted: dict[int, list[Place]] = {}
    for place in places(form):
        for k in rng.choice(len(names), size=count, p=sizes / sizes.sum()):
            wanted.setdefault(int(k), []).append(place)
    held, added = {}, []
    for k, (i, layer) in enumerate(names):
        W, name = (
            linear(checkpoint.block(i), layer).weight.detach().float(),
            checkpoint.architecture.full_name(i, layer),
        )
        turn = Hadamard(n_in=W.shape[1], n_out=W.shape[1]) if rotated else None
        stored = Stored.of(W if turn is None else turn.to_weights(W), form)
        values = torch.from_numpy(stored.values)
        held[f"{name}.weight"] = values if turn is None else turn.from_weights(values)
        for place in wanted.get(k, []):
            row, vector = stored.flip(place, rng)
            size = np.abs(vector[vector != 0])
            change = float(np.median(size)) / float(stored.values.std()) if len(size) else 0.0
            if turn is not None:
                vector = turn.from_weights(torch.from_numpy(vector[None]))[0].numpy()
            added.append(_Added(place, name, row, vector, change))
    return held, added


def _logits(
    checkpoint: "Checkpoint", held: "Mapping[str, torch.Tensor]", tokens: "torch.Tensor", added: Sequence[_Added]
) -> "torch.Tensor":
    """Logits (rows, length - 1, vocabulary) of a model with these weights; row r of `tokens` has the r-th flip."""
    there = checkpoint.holding(held)
    hidden = there.embed(tokens)
    for i in range(there.n_blocks):
        block = there.block(i)
        for layer in there.architecture.layers:
            name = there.architecture.full_name(i, layer)
            mine = [(r, one) for r, one in enumerate(added) if one.layer == name]
            if mine:
                _hook(block.get_submodule(layer), mine)
        hidden = there.run(i, block, hidden)
    return there.logits(hidden[:, :-1])


def _hook(layer: "torch.nn.Module", mine: Sequence[tuple[int, _Added]]) -> None:
    """Have a layer add x . vector to one channel of its outputs for each of these rows of a batch."""
    import torch

    def add(_: "torch.nn.Module", inputs: "tuple[torch.Tensor, ...]", outputs: "torch.Tensor") -> "torch.Tensor":
        outputs = outputs.clone()
        for r, one in mine:
            outputs[r, :, one.row] += inputs[0][r] @ torch.from_numpy(one.vector).to(inputs[0])
        return outputs

    layer.register_forward_hook(add)


def harm(found: Sequence[Flip]) -> dict[str, float]:
    """Of a stored bit at random: the mean and the median divergence in nats, and the share from 0.1 nats on."""
    nats = np.array([one.nats for one in found])
    weights = np.array([one.place.share for one in found])
    weights /= weights.sum()
    order = np.argsort(nats)
    middle = int(np.searchsorted(np.cumsum(weights[order]), 0.5))
    return {"mean": float(weights @ nats), "median": float(nats[order][min(middle, len(nats) - 1)]),
            "share of harm": float(weights @ (nats >= HARM_NATS))}  # fmt: skip


def _name(form: Format, rotated: bool) -> str:
    return f"{form}, rotated" if rotated else form


def _measure(setting: Setting) -> list[Point]:
    found: dict[tuple[str, str, int], list[float]] = {}
    for form, rotated in WAYS:
        for seed in seeds_of(setting):
            for place, nats in _by_place(flips(_at(setting, seed), form, rotated)):
                key = (_name(form, rotated), place.part, place.bit)
                found.setdefault(key, []).append(float(np.log10(max(nats, 1e-15))))
    return [replicated(f"{name}, {part}s", bit, values) for (name, part, bit), values in found.items()]


def _at(setting: Setting, seed: int) -> Setting:
    return Setting(model=setting.model, seed=seed, effort=setting.effort, store=setting.store)


def _by_place(found: Sequence[Flip]) -> Iterator[tuple[Place, float]]:
    for place in dict.fromkeys(one.place for one in found):
        yield place, float(np.median([one.nats for one in found if one.place == place]))


def _sentence(points: Sequence[Point]) -> str:
    parts = []
    for series in dict.fromkeys(p.series for p in points):
        mine = sorted((p for p in points if p.series == series), key=lambda p: p.y)
        parts.append(f"{10 ** mine[0].y:.1g} to {10 ** mine[-1].y:.1g} (bit {mine[-1].x:g}) of {series}")
    return f"Median divergences in nats of one flip, from the most harmless bit to the worst: {'; '.join(parts)}."


def _measure_sizes(setting: Setting) -> list[Point]:
    from suite.models.architecture import linear
    from suite.models.checkpoint import load_model

    checkpoint = load_model(setting.model)
    W = linear(checkpoint.block(0), checkpoint.architecture.layers[-1]).weight.detach().float()
    points, count = [], max(15, round(255 * setting.effort))
    for form in FORMATS:
        stored, sigma = Stored.of(W, form), float(W.std())
        for place in places(form):
            told = median_change(place, sigma)
            rows = [_median_size(stored, place, seed, count) / sigma for seed in seeds_of(setting)]
            series = f"{form}, {place.part}s"
            if np.isfinite(told) and told > 0:
                points.append(Point(series=f"{series}, Gaussian", x=place.bit, y=float(np.log10(told)), predicted=True))
            if np.isfinite(rows).all() and min(rows) > 0:
                points.append(replicated(series, place.bit, [float(np.log10(row)) for row in rows]))
    return points


def _median_size(stored: Stored, place: Place, seed: int, count: int) -> float:
    rng = np.random.default_rng((seed, place.bit))
    sizes = []
    for _ in range(count):
        vector = np.abs(stored.flip(place, rng)[1])
        sizes.append(float(np.median(vector[vector != 0])) if (vector != 0).any() else 0.0)
    return float(np.median(sizes))


def _sentence_sizes(points: Sequence[Point]) -> str:
    told = {(p.series.removesuffix(", Gaussian"), p.x): p.y for p in points if p.predicted}
    off = [abs(p.y - told[p.series, p.x]) for p in points if not p.predicted and (p.series, p.x) in told]
    parts = []
    for series in dict.fromkeys(p.series for p in points if not p.predicted):
        top = max((p for p in points if p.series == series), key=lambda p: p.y)
        parts.append(f"{10**top.y:.2g} (bit {top.x:g}) of {series}")
    return (
        f"The largest median changes of a weight by one flip, in standard deviations: {'; '.join(parts)}. Of Gaussian "
        f"weights they are {10 ** float(np.median(off)):.2g} times as large or as small, in the median over bits."
    )


EXPERIMENTS = (
    Experiment(name="bit-flips-weights", title="What one flipped bit changes a weight by", on_model=True,
               source="closed forms of `theory.limits.bit_flips`", x="bit, from the lowest",
               y="log10 of the median change over the standard deviation", measure=_measure_sizes,
               sentence=_sentence_sizes, interval=INTERVAL),
    Experiment(name="bit-flips-predictions", title="What one flipped bit does to a model's predictions", on_model=True,
               source="derivation of `theory.limits.flipped_models`", x="bit, from the lowest",
               y="log10 of the median KL, nats a token", measure=_measure, sentence=_sentence, tier="full",
               interval=INTERVAL),
)  # fmt: skip
