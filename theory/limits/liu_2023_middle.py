"""Lost in the middle: what a recall model recalls, by where it stands, as the places asked for in training are swept.

Liu, Lin, Hewitt, Paranjape, Bevilacqua, Petroni, Liang 2023, "Lost in the Middle: How Language Models Use Long
Contexts", arXiv:2307.03172, find recall to be best at both ends of a context. Here a small LLaMA learns associative
recall (Arora et al. 2023, "Zoology", arXiv:2312.04927): twelve facts, then four of their keys, at each of which the
value of its fact is to be said, which is all that is learned. A fact is one token, a key with a value, so that what is
learned is to look a key up and not first to join two tokens: pairs of tokens were not learned in 600 updates, facts
are in 200. Keys of a row differ, values are drawn anew for every row, so that nothing but the context knows the answer.
Which facts are asked for is drawn without replacement, by one of three weights over places:

- `uniform`: all alike;
- `U`: by the squared distance from the middle, and a tenth at least of what the ends have;
- `ends`: the first two and the last two only.

What is asked of all of them is the same: each place once, in rows of their own. The depth of the U is the share of
right answers at the worse of both ends, the first fact and the last, less that of the two facts in the middle.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

if TYPE_CHECKING:
    import torch
    from torch import nn

Asked = Literal["uniform", "U", "ends"]
ASKED: tuple[Asked, ...] = ("uniform", "U", "ends")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """The task and the training: `facts` of `symbols` keys and as many values, of which `queries` are asked for."""

    asked: Asked = "uniform"
    facts: int = 12
    queries: int = 4
    symbols: int = 16
    hidden: int = 64
    blocks: int = 2
    rows: int = 64
    steps: int = 200
    rate: float = 5e-3
    evaluated: int = 256  # rows for each place

    def __post_init__(self) -> None:
        if self.asked not in ASKED or not 4 <= self.queries <= self.facts <= self.symbols:
            raise ValueError(f"{self}: expected asked among {', '.join(ASKED)}, 4 <= queries <= facts <= symbols")

    @property
    def weights(self) -> np.ndarray:
        """How often each place is asked for, (facts,), relative to others."""
        t = np.abs(np.linspace(-1, 1, self.facts))
        if self.asked == "uniform":
            return np.ones(self.facts)
        ends = np.minimum(np.arange(self.facts), np.arange(self.facts)[::-1]) < 2
        return np.maximum(t**2, 0.1) if self.asked == "U" else ends.astype(float)


def batch(
    how: Recall, rng: np.random.Generator, rows: int, places: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (rows, facts + queries) of facts and of keys that are asked for, and answers (rows, queries).

    The fact of key k and value v is token `symbols` k + v, the question for k token `symbols`^2 + k, the answer v token
    `symbols`^2 + `symbols` + v. Asked for are those at `places` (rows, queries), or drawn ones, which differ within a
    row, by weight without replacement (Efraimidis, Spirakis 2006: the largest of u^(1 / w)).
    """
    n = how.symbols
    keys = rng.random((rows, n)).argsort(1)[:, : how.facts]
    values = rng.integers(n, size=(rows, how.facts))
    if places is None:
        with np.errstate(divide="ignore"):
            order = np.log(rng.random((rows, how.facts))) / how.weights
        places = order.argsort(1)[:, ::-1][:, : how.queries]
    asked, answers = (np.take_along_axis(one, places, 1) for one in (keys, values))
    return np.concatenate([n * keys + values, n**2 + asked], 1), n**2 + n + answers


def said(model: "nn.Module", how: Recall, tokens: "torch.Tensor") -> "torch.Tensor":
    """Logits (rows, queries, vocabulary) at the keys that are asked for."""
    from suite.learning.objective import read

    return read(model, tokens)[1][:, how.facts :]


def trained(how: Recall, seed: int) -> "nn.Module":
    """A model that has learned to recall, from weights and rows that the seed draws."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from suite.adaptation.training import Schedule, train

    config = LlamaConfig(
        vocab_size=how.symbols**2 + 2 * how.symbols, hidden_size=how.hidden, intermediate_size=3 * how.hidden,
        num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=how.blocks,
        max_position_embeddings=how.facts + how.queries, initializer_range=how.hidden**-0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)

    def loss_of(part: int) -> torch.Tensor:
        rows, answers = map(torch.from_numpy, batch(how, np.random.default_rng((seed, part)), how.rows))
        return torch.nn.functional.cross_entropy(said(model, how, rows).flatten(0, 1), answers.flatten())

    train(model, loss_of, Schedule(steps=how.steps, rate=how.rate, warmup=0.05))
    return model


def recall(how: Recall, seed: int) -> np.ndarray:
    """The share of right answers at each place, (facts,), of a model trained as `how` says; kept on disk."""
    import torch

    from suite.cache import keep_array
    from suite.environment import code_version, environment_key

    about = f"recall by place {asdict(how)} {seed} {code_version('theory')}"
    key = f"{about} {environment_key(torch.get_num_threads())}"
    return np.asarray(keep_array(key, lambda: _recall(how, trained(how, seed), seed)))


def _recall(how: Recall, model: "nn.Module", seed: int) -> np.ndarray:
    import torch

    rng = np.random.default_rng((seed, how.steps, 1))
    right = []
    for place in range(how.facts):
        others = (place + np.arange(how.queries)) % how.facts  # only the first is looked at: none is asked before it
        rows, answers = map(torch.from_numpy, batch(how, rng, how.evaluated, np.tile(others, (how.evaluated, 1))))
        with torch.no_grad():
            found = said(model, how, rows)[:, 0].argmax(-1)
        right.append(float((found == answers[:, 0]).double().mean()))
    return np.array(right)


def depth(right: np.ndarray) -> float:
    """How far recall in the middle is below the worse of both ends; negative where it is above.

    >>> depth(np.array([0.9, 0.5, 0.5, 0.8]))
    0.3
    """
    middle = len(right) // 2
    return round(float(min(right[0], right[-1]) - right[middle - 1 : middle + 1].mean()), 9)


def _measure(setting: Setting) -> list[Point]:
    points = []
    for asked in ASKED:
        rows = np.array([recall(_of(setting, asked), seed) for seed in seeds_of(setting)])
        points += [replicated(f"asked {asked}", place + 1, values.tolist()) for place, values in enumerate(rows.T)]
    return points


def _of(setting: Setting, asked: Asked) -> Recall:
    plain = Recall(asked=asked)
    return Recall(asked=asked, steps=max(2, round(plain.steps * min(1.0, setting.effort))))


def _sentence(points: Sequence[Point]) -> str:
    parts = []
    for series in dict.fromkeys(p.series for p in points):
        right = np.array([p.y for p in sorted((p for p in points if p.series == series), key=lambda p: p.x)])
        middle = len(right) // 2
        parts.append(f"{right[0]:.1%} first, {right[middle - 1 : middle + 1].mean():.1%} in the middle, "
                     f"{right[-1]:.1%} last where training {series}")  # fmt: skip
    return f"Right answers by place: {'; '.join(parts)}."


EXPERIMENT = Experiment(
    name="lost-in-the-middle",
    title="What a recall model recalls, by place and by the places asked for in training",
    source="Liu et al. 2023, arXiv:2307.03172; Arora et al. 2023, arXiv:2312.04927",
    x="place of the fact",
    y="share of right answers",
    measure=_measure,
    sentence=_sentence,
    tier="nightly",
    interval=INTERVAL,
)
