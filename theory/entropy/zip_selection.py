"""Does text that compresses less teach more? ZIP's selection against random rows, at equal tokens.

Yin et al. 2024, Entropy Law: The Story Behind Data Compression and LLM Performance, arXiv:2407.06645. ZIP picks a
subset of low compression ratio (raw over compressed size, zlib at level 9) greedily, in rounds of three stages: of all
rows the `FIRST` whose last known ratio is lowest; of these, with their ratios beside what is selected renewed, the
`SECOND` lowest; of these `THIRD`, one after the other, each the one whose ratio with those of its round is lowest. Rows
that the third stage leaves go back to the rest; the authors' code drops them.

A round's prefix is compressed once and its state copied for each candidate: the same bytes as compressing both. Note
that DEFLATE looks back 32 KiB, so that redundancy with what was selected long before is not seen.

**Corpora.** Each has as many rows of the reference text: all of them its own (`plain`), half of them copies of a few
(`redundant`), or a quarter of them tokens drawn at random (`random`). What is held out is plain text in all three. The
model, its initialization, the schedule and the number of tokens are the same for both selections.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

if TYPE_CHECKING:
    from suite.models.checkpoint import Checkpoint

CORPORA, SELECTIONS = ("plain", "redundant", "random"), ("ZIP", "random rows")
FIRST, SECOND, THIRD = 256, 48, 16
_POOL, _CHOSEN, _HELD_OUT = 768, 256, 64  # rows
_COPIES, _COPIED = 16, 0.5  # of a row, and the share of the pool that are copies
_RANDOM = 0.25  # of the pool
_UPDATES, _ROWS = 128, 4  # all chosen rows twice
_HIDDEN, _BLOCKS = 64, 2


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a selection: nats per token of the held-out text, the selection's ratio, its share of fillers."""

    nats: float
    ratio: float
    fillers: float


class _Prefix:
    """What has been compressed so far, and what it would be with something more."""

    def __init__(self) -> None:
        self._state, self._raw, self._out = zlib.compressobj(9), 0, 0

    def add(self, text: bytes) -> None:
        self._out += len(self._state.compress(text))
        self._raw += len(text)

    def ratio_with(self, text: bytes) -> float:
        beside = self._state.copy()
        return (self._raw + len(text)) / (self._out + len(beside.compress(text)) + len(beside.flush()))


def ratio_of(texts: Sequence[bytes]) -> float:
    """Raw over compressed size of texts one after the other, zlib at level 9.

    >>> ratio_of([b"ab" * 500]) > 50 > 2 > ratio_of([bytes(range(256))])
    True
    """
    joined = b"".join(texts)
    return len(joined) / len(zlib.compress(joined, 9))


def selected(
    texts: Sequence[bytes], wanted: int, first: int = FIRST, second: int = SECOND, third: int = THIRD
) -> list[int]:
    """The indices of `wanted` texts in the order that ZIP takes them; `ValueError` where there are fewer."""
    if not 0 < wanted <= len(texts):
        raise ValueError(f"{wanted} of {len(texts)} texts: expected one and at most all")
    state = np.array([ratio_of([text]) for text in texts])
    rest, chosen, whole = set(range(len(texts))), list[int](), _Prefix()
    while len(chosen) < wanted:
        pool = sorted(rest, key=lambda i: (state[i], i))[:first]
        for i in pool:
            state[i] = whole.ratio_with(texts[i])
        near, round_ = sorted(pool, key=lambda i: (state[i], i))[:second], _Prefix()
        for _ in range(min(third, len(near), wanted - len(chosen))):
            best = min(near, key=lambda i: (round_.ratio_with(texts[i]), i))
            near.remove(best)
            rest.remove(best)
            chosen.append(best)
            round_.add(texts[best])
            whole.add(texts[best])
    return chosen


def corpus(kind: str, rows: np.ndarray, vocabulary: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """As many rows as `rows` (n, length), in random order, and which of them are fillers (n,), copies or random ones.

    A row that is copied is among the fillers too; `ValueError` for a kind that is none of `CORPORA`.
    """
    if kind not in CORPORA:
        raise ValueError(f"corpus {kind!r}: expected one of {', '.join(CORPORA)}")
    n = len(rows)
    made, filler = rows.copy(), np.zeros(n, dtype=bool)
    if kind == "redundant":
        few = round(_COPIED * n) // _COPIES
        filler[: few * _COPIES] = True
        made[: few * _COPIES] = np.repeat(rows[:few], _COPIES, axis=0)
    elif kind == "random":
        filler[: round(_RANDOM * n)] = True
        made[filler] = rng.integers(1, vocabulary, (int(filler.sum()), rows.shape[1]))
    order = rng.permutation(n)
    return made[order], filler[order]


@lru_cache(maxsize=128)
def outcome(kind: str, how: str, seed: int) -> Trained:
    """Train the tiny model on a selection from a corpus, both by `seed`; kept on disk.

    The text is that of the shipped model, and so are the tokens. `ValueError` for a selection that is none of
    `SELECTIONS`.
    """
    from suite.cache import keep_array
    from suite.environment import code_version, environment_key

    if how not in SELECTIONS:
        raise ValueError(f"selection {how!r}: expected one of {', '.join(SELECTIONS)}")
    import torch

    about = (zlib.crc32(Path(__file__).read_bytes()), code_version(), environment_key(torch.get_num_threads()))
    found = keep_array(f"zip selection {kind} {how} {seed} {about}", lambda: np.array(_outcome(kind, how, seed)))
    return Trained(*map(float, found))


def _outcome(kind: str, how: str, seed: int) -> tuple[float, float, float]:
    from suite.models.checkpoint import load_model
    from suite.tokens import load_tokens

    checkpoint, rng = load_model("reference"), np.random.default_rng((seed, CORPORA.index(kind)))
    pool = load_tokens(None, "training", checkpoint, checkpoint.context).rows
    drawn = pool[np.random.default_rng(seed).choice(len(pool), _POOL, replace=False)]
    rows, filler = corpus(kind, drawn, int(checkpoint.config.vocab_size), rng)
    texts = _texts(checkpoint, rows)
    chosen = selected(texts, _CHOSEN) if how == "ZIP" else rng.choice(len(rows), _CHOSEN, replace=False).tolist()
    held_out = load_tokens(None, "validation", checkpoint, checkpoint.context).draw(_HELD_OUT * checkpoint.context, 0)
    nats = _trained_on(rows[chosen], held_out.rows, seed)
    return nats, ratio_of([texts[i] for i in chosen]), float(filler[chosen].mean())


def _texts(checkpoint: "Checkpoint", rows: np.ndarray) -> list[bytes]:
    tokenizer = checkpoint.tokenizer()
    return [text.encode() for text in tokenizer.batch_decode(rows.tolist())]


def _trained_on(rows: np.ndarray, held_out: np.ndarray, seed: int) -> float:
    """Mean nats per token of `held_out` rows after a training on `rows`; initialization and order by `seed`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from suite.adaptation.training import Schedule, train
    from suite.reference.training import Plan, perplexity
    from suite.scaling.family import MOST_ROWS, WARMUP, peak_rate

    shape = Plan(hidden=_HIDDEN, blocks=_BLOCKS, mlp=3 * _HIDDEN, heads=2, cache_heads=1).shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True, dtype="float32"))
    data, per_epoch = torch.from_numpy(rows), len(rows) // _ROWS

    def loss_of(step: int) -> torch.Tensor:
        epoch, index = divmod(step, per_epoch)
        order = np.random.default_rng((seed, epoch)).permutation(len(rows))
        batch = data[order[index * _ROWS : (index + 1) * _ROWS]]
        loss: torch.Tensor = model(input_ids=batch, labels=batch).loss
        return loss

    rate = peak_rate(_HIDDEN) * (_ROWS / MOST_ROWS) ** 0.25
    train(model, loss_of, Schedule(steps=_UPDATES, rate=rate, warmup=WARMUP))
    return float(np.log(perplexity(model, held_out)))


def compared(setting: Setting) -> Mapping[str, float]:
    """N7: nats of the held-out text after ZIP's less after random rows, by corpus, and the ratios of both."""
    found: dict[str, float] = {}
    for kind in CORPORA:
        zipped, drawn = (outcome(kind, how, setting.seed) for how in SELECTIONS)
        found |= {f"ZIP less random rows, {kind} text": zipped.nats - drawn.nats,
                  f"ratio, ZIP, {kind} text": zipped.ratio, f"ratio, random rows, {kind} text": drawn.ratio,
                  f"fillers, ZIP, {kind} text": zipped.fillers}  # fmt: skip
    return found


def _measure(setting: Setting) -> list[Point]:
    points = []
    for kind in CORPORA:
        for how in SELECTIONS:
            found = [outcome(kind, how, seed) for seed in seeds_of(setting, least=1)]  # a training takes seconds
            x = float(np.mean([one.ratio for one in found]))
            points.append(replicated(f"{kind} text, {how}", x, [one.nats for one in found]))
    return points


def _sentence(points: Sequence[Point]) -> str:
    at = {p.series: p for p in points}
    rows = []
    for kind in CORPORA:
        zipped, drawn = (at[f"{kind} text, {how}"] for how in SELECTIONS)
        rows.append(f"{zipped.y - drawn.y:+.3f} nats on {kind} text (ratio {zipped.x:.2f} against {drawn.x:.2f})")
    return f"What ZIP's selection changes of the loss on held-out text, against random rows: {', '.join(rows)}."


EXPERIMENT = Experiment(
    name="entropy-zip-selection",
    title="Held-out loss against the compression ratio of what a tiny model was trained on",
    source="Yin et al. 2024, arXiv:2407.06645",
    x="compression ratio of the selection, raw over zlib",
    y="loss on held-out text, nats per token",
    measure=_measure,
    sentence=_sentence,
    tier="nightly",
    interval=INTERVAL,
)
