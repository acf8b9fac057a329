"""The intrinsic dimension of a model's hidden states: by layer, after rounding its weights, and as it overfits.

Ruppik, von Rohrscheidt, van Niekerk, Heck, Vukovic, Feng, Lin, Lubis, Rieck, Zibrowius, Gasic 2025, "Less is More:
Local Intrinsic Dimensions of Contextual Language Models", arXiv:2506.01034, follow it through training. Here a state is
what leaves a block at a token, of tokens drawn from rows of the evaluation text: not the first of a row, which is the
same in all of them, nor embeddings, which are the same wherever a token occurs. The estimators and their bias are those
of `theory.limits.intrinsic_dimension`: so each number has beside it that of a Gaussian of as many points, isotropic in
all channels or of the states' own covariance.

Overfitting is a training of its own: a LLaMA of two blocks and 64 channels on 48 rows of 128 tokens, a hundred times
over. Its losses and dimensions at a dozen updates are kept on disk.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from theory.experiment import Experiment, Point, Setting
from theory.limits.intrinsic_dimension import dimensions, like
from theory.replication import INTERVAL, replicated, seeds_of

if TYPE_CHECKING:
    import torch

    from suite.models.checkpoint import Checkpoint

BITS = (8, 4, 3, 2)
_ROWS, _LENGTH, _POINTS = 16, 256, 1000
COLUMNS = ("step", "training nats", "validation nats", "TwoNN, held out", "MLE, held out", "TwoNN, trained on")


def states(checkpoint: "Checkpoint", tokens: "torch.Tensor", chosen: np.ndarray) -> list[np.ndarray]:
    """Hidden states (points, hidden) at `chosen` tokens of rows, without each row's first, of each block."""
    hidden, found = checkpoint.embed(tokens), []
    for i in range(checkpoint.n_blocks):
        hidden = checkpoint.run(i, checkpoint.block(i), hidden)
        found.append(hidden)
    return [one[:, 1:].reshape(-1, one.shape[-1])[chosen].double().numpy() for one in found]


def rounded(checkpoint: "Checkpoint", bits: int) -> "Checkpoint":
    """The checkpoint with its blocks' linear layers rounded to nearest at this width, by the suite's defaults."""
    from suite.methods import method_named
    from suite.models.architecture import linear
    from suite.quantize import generator_for, quantize_layer

    target = method_named("rtn").recipe(bits=bits).weights
    assert target is not None
    held = {}
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        for layer in checkpoint.architecture.layers:
            name = checkpoint.architecture.full_name(i, layer)
            found = quantize_layer(linear(block, layer).weight.detach(), target, None, generator_for(0, name))
            held[f"{name}.weight"] = found.dequantize()
    return checkpoint.holding(held)


def of_model(setting: Setting) -> dict[str, list[dict[str, float]]]:
    """By what is looked at, the dimensions layer by layer: the model, its rounded versions, and two Gaussians."""
    from suite.models.checkpoint import load_model
    from suite.tokens import load_tokens

    checkpoint = load_model(setting.model)
    length = min(_LENGTH, checkpoint.context)
    tokens = load_tokens(None, "evaluation", checkpoint, length).draw(_ROWS * length, setting.seed).tensor()
    count = max(150, round(_POINTS * min(1.0, setting.effort)))
    chosen = np.random.default_rng(setting.seed).permutation(tokens.shape[0] * (length - 1))[:count]
    plain = states(checkpoint, tokens, chosen)
    found = {"unquantized": [dimensions(one) for one in plain]}
    for name, isotropic in (("isotropic Gaussian", True), ("Gaussian of the same covariance", False)):
        found[name] = [dimensions(like(one, setting.seed, isotropic)) for one in plain]
    for bits in BITS:
        found[f"{bits} bits"] = [dimensions(one) for one in states(rounded(checkpoint, bits), tokens, chosen)]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Overfitting:
    """A small training on few rows, and the updates at which it is looked at."""

    rows: int = 48
    length: int = 128
    batch_rows: int = 8
    hidden: int = 64
    blocks: int = 2
    steps: int = 600
    rate: float = 3e-3
    looks: tuple[int, ...] = (1, 10, 25, 50, 75, 100, 150, 200, 300, 400, 500, 600)
    points: int = 1000


def overfitted(how: Overfitting, seed: int) -> np.ndarray:
    """What `COLUMNS` says, (looks, columns), of the training that follows from the seed; kept on disk.

    Dimensions are of what leaves the last block, by TwoNN and by maximum likelihood with 20 neighbors.
    """
    import torch

    from suite.cache import keep_array
    from suite.environment import code_version, environment_key

    about = f"overfitting {asdict(how)} {seed} {code_version('theory')}"
    return np.asarray(keep_array(f"{about} {environment_key(torch.get_num_threads())}", lambda: _overfitted(how, seed)))


def _overfitted(how: Overfitting, seed: int) -> np.ndarray:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from suite.adaptation.training import Schedule, train
    from suite.learning.objective import batch_of, next_token_loss
    from suite.models.checkpoint import load_model
    from suite.reference.training import VOCABULARY
    from suite.tokens import load_tokens

    shipped = load_model("reference")  # its tokens, and nothing else of it
    own, other = (load_tokens(None, part, shipped, how.length).draw(how.rows * how.length, seed).tensor()
                  for part in ("training", "validation"))  # fmt: skip
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=how.hidden, intermediate_size=3 * how.hidden,
                         num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=how.blocks,
                         max_position_embeddings=how.length, tie_word_embeddings=True)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    chosen = np.random.default_rng(seed).permutation(len(other) * (how.length - 1))[: how.points]
    table: list[list[float]] = []

    def after(step: int, _: float) -> None:
        if step in how.looks:
            with torch.no_grad():
                losses = [float(next_token_loss(model, rows)) for rows in (own, other)]
                held, mine = (dimensions(_last(model, rows)[chosen], (20,)) for rows in (other, own))
            table.append([step, *losses, held["TwoNN"], held["MLE, 20 neighbors"], mine["TwoNN"]])

    def loss_of(part: int) -> torch.Tensor:
        return next_token_loss(model, batch_of(own, part, rows_per_batch=how.batch_rows, seed=seed))

    train(model, loss_of, Schedule(steps=how.steps, rate=how.rate, warmup=0.05, weight_decay=0.0), after=after)
    return np.array(table)


def _last(model: "torch.nn.Module", tokens: "torch.Tensor") -> np.ndarray:
    """What leaves the last block, before the norm, at all tokens but each row's first, (points, hidden)."""
    seen: list[torch.Tensor] = []
    blocks = model.get_submodule("model.layers")
    handle = list(blocks.children())[-1].register_forward_hook(lambda _m, _x, y: seen.append(y))
    model.get_submodule("model")(input_ids=tokens, use_cache=False)
    handle.remove()
    return np.asarray(seen[0][:, 1:].reshape(-1, seen[0].shape[-1]).double().numpy())


def _measure(setting: Setting) -> list[Point]:
    found = [of_model(replace(setting, seed=seed)) for seed in seeds_of(setting)]
    points = []
    for name, layers in found[0].items():
        for estimator in ("TwoNN", "MLE, 100 neighbors"):
            points += [replicated(f"{name}, {estimator}", at + 1, [one[name][at][estimator] for one in found])
                       for at in range(len(layers))]  # fmt: skip
    return points


def _sentence(points: Sequence[Point]) -> str:
    last = max(p.x for p in points)
    parts = [f"{p.y:.1f} ({p.series.removesuffix(', TwoNN')})" for p in points
             if p.x == last and p.series.endswith("TwoNN")]  # fmt: skip
    return f"TwoNN's dimension of what leaves the last block: {', '.join(parts)}."


def _measure_overfitting(setting: Setting) -> list[Point]:
    how = Overfitting()
    if setting.effort < 1:
        how = replace(how, steps=4, looks=(1, 2, 4), rows=8, points=400)
    tables = np.array([overfitted(how, seed) for seed in seeds_of(setting)])
    looks = range(tables.shape[1])
    return [replicated(name, tables[0, at, 0], tables[:, at, column].tolist())
            for column, name in enumerate(COLUMNS) if column for at in looks]  # fmt: skip


def _sentence_overfitting(points: Sequence[Point]) -> str:
    at = {(p.series, p.x): p.y for p in points}
    steps = sorted({p.x for p in points})
    best = min(steps, key=lambda step: at["validation nats", step])
    told = ", ".join(f"{at['TwoNN, held out', step]:.1f} after {step:g}" for step in (steps[0], best, steps[-1]))
    low, high = (at["validation nats", step] for step in (best, steps[-1]))
    return (
        f"Validation loss is least after {best:g} updates, {low:.2f} nats, and {high:.2f} at the end; TwoNN's "
        f"dimension of held-out states is {told}."
    )


EXPERIMENTS = (
    Experiment(name="dimension-of-states", title="Intrinsic dimension of hidden states, layer by layer", on_model=True,
               source="Facco et al. 2017; Levina, Bickel 2004; Ruppik et al. 2025, arXiv:2506.01034",
               x="block", y="intrinsic dimension", measure=_measure, sentence=_sentence, log="y",
               tier="full", interval=INTERVAL),
    Experiment(name="dimension-overfitting", title="Intrinsic dimension of hidden states as a model overfits",
               source="Ruppik et al. 2025, arXiv:2506.01034", x="updates", y="nats, or dimensions",
               measure=_measure_overfitting, sentence=_sentence_overfitting, log="x", tier="nightly",
               interval=INTERVAL),
)  # fmt: skip
