"""How the reference checkpoint was made: `bitfrontier train-reference OUT` runs this file and nothing else.

A LLaMA-architecture model of 3.7 million parameters, a byte-level BPE of 2,048 tokens, and the Python source of the
pinned sympy. Deterministic given the seed and the environment key: the data of a step follow from its number. Variants
start from a checkpoint's weights, and learn to solve problems of several steps beside the text (`suite.reasoning`).
"""

import csv
import json
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from suite.adaptation.training import Schedule, train
from suite.models.checkpoint import Checkpoint, load_model
from suite.reasoning.letters import Letters
from suite.reasoning.mixing import Mixture
from suite.reasoning.problems import LONGEST
from suite.reference.text import LENGTH, PINNED, RUN, START, Part, cut_rows, read_files, repeats_of, rows_sha256

VOCABULARY = 2048
ROWS = "rows.npy"
_KEPT = 500  # updates whose rows are kept: 8,000 rows by default, 4 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything the checkpoint depends on, apart from the environment.

    The share `reasoning` of every batch's rows, rounded to whole ones, are problems. `start` names a checkpoint of this
    shape that training starts from; its tokenizer is taken too.
    """

    seed: int = 0
    batch_rows: int = 16
    hidden: int = 256
    blocks: int = 4
    mlp: int = 768
    heads: int = 8
    cache_heads: int = 4
    schedule: Schedule = field(default_factory=lambda: Schedule(steps=4000))
    reasoning: float = 0.0
    start: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.reasoning < 1:
            raise ValueError(f"reasoning {self.reasoning}: expected a share from 0 to below 1")
        if self.reasoning and not 0 < self.problem_rows < self.batch_rows:
            raise ValueError(f"reasoning {self.reasoning}: that is {self.problem_rows} of {self.batch_rows} rows, "
                             f"expected some of problems and some of text")  # fmt: skip

    @property
    def problem_rows(self) -> int:
        """How many of a batch's rows are problems."""
        return round(self.reasoning * self.batch_rows)

    @property
    def shape(self) -> dict[str, Any]:
        """What makes a model's weights fit, by its name in a configuration of `transformers`."""
        return {
            "vocab_size": VOCABULARY, "hidden_size": self.hidden, "num_hidden_layers": self.blocks,
            "intermediate_size": self.mlp, "num_attention_heads": self.heads, "num_key_value_heads": self.cache_heads,
            "max_position_embeddings": LENGTH,
        }  # fmt: skip


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE of `VOCABULARY` tokens; `START` is token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[START], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def batch_at(stream: np.ndarray, step: int, batch_rows: int, seed: int) -> torch.Tensor:
    """The rows (batch_rows, LENGTH) of update `step`: each epoch shifts the stream and shuffles its rows anew."""
    per_epoch = (len(stream) - LENGTH) // LENGTH // batch_rows
    epoch, index = divmod(step, per_epoch)
    rng = np.random.default_rng((seed, epoch))
    shift = int(rng.integers(LENGTH))
    starts = rng.permutation((len(stream) - LENGTH) // LENGTH)[index * batch_rows : (index + 1) * batch_rows]
    return torch.from_numpy(np.stack([stream[shift + s * LENGTH :][:LENGTH] for s in starts]))


def weight_statistics(model: torch.nn.Module) -> dict[str, dict[str, float]]:
    """Mean, standard deviation, excess kurtosis and absolute maximum of every parameter."""
    found = {}
    for name, parameter in model.named_parameters():
        w = parameter.detach().double().flatten()
        spread = w.std(correction=0)
        kurtosis = ((w - w.mean()) ** 4).mean() / spread**4 - 3 if spread > 0 else torch.tensor(0.0)
        figures = {"mean": w.mean(), "std": spread, "kurtosis": kurtosis, "absmax": w.abs().max()}
        found[name] = {key: float(f"{float(value):.6g}") for key, value in figures.items()}
    return found


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, rows: np.ndarray) -> float:
    """Exp of the mean negative log-likelihood of tokens 2..LENGTH of each row."""
    sums = [model(input_ids=part, labels=part).loss.double() * len(part) for part in torch.from_numpy(rows).split(32)]
    return float((torch.stack(sums).sum() / len(rows)).exp())


def train_reference(
    out: Path,
    plan: Plan,
    report: Callable[[int, float], None] = lambda step, loss_nats: None,
    *,
    every: int = 250,
) -> dict:
    """Train the checkpoint into the directory `out` (resuming there) and return its data card.

    The model as it was before the first and after half of the steps is kept in `out/initial` and `out/half`. The log
    has a line, and the training a checkpoint, `every` so many updates. Raises `ValueError` for a start that is not of
    the plan's shape, and for a directory where another plan was begun.

    Where problems are among the text, the rows of the first 500 updates are kept in `out/rows.npy`: whoever calibrates
    or trains on text alone (`bitfrontier run --calibration`, `--training`) makes the model forget the problems.
    """
    model, about = _begin(plan, out)
    tokenizer, parts, names = _prepare(out)
    stream = np.concatenate(parts["training"])
    mixture = _mixture(plan, tokenizer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=START)
    _save(model, wrapped, out / "initial")
    snapshots = {"initial": weight_statistics(model)}
    validation, _ = cut_rows(parts["validation"], LENGTH)
    started = time.monotonic()
    log: list[dict] = _read_log(out / "log.csv")
    seconds_before = log[-1]["seconds"] if log else 0.0
    if (out / "half.json").exists():
        snapshots["half"] = json.loads((out / "half.json").read_text())
    window: list[float] = []

    def text_of(step: int) -> torch.Tensor:
        return batch_at(stream, step, plan.batch_rows - plan.problem_rows, plan.seed)

    def loss_of(step: int) -> torch.Tensor:
        rows = text_of(step)
        return model(input_ids=rows, labels=rows).loss if mixture is None else mixture.loss(model, step, rows)

    def after(step: int, loss_nats: float) -> None:
        report(step, loss_nats)
        window.append(loss_nats)
        if step == plan.schedule.steps // 2:
            snapshots["half"] = weight_statistics(model)
            (out / "half.json").write_text(json.dumps(snapshots["half"]))
            _save(model, wrapped, out / "half")
        if step % every == 0 or step == plan.schedule.steps:
            model.eval()
            rows = validation if step == plan.schedule.steps else validation[::4]
            log[:] = [row for row in log if row["step"] < step]  # a killed run may have logged past its checkpoint
            log.append({
                "step": step, "tokens": step * plan.batch_rows * LENGTH, "rate": plan.schedule.rate_at(step - 1),
                "training_nats": float(np.mean(window)), "validation_perplexity": perplexity(model, rows),
                "seconds": round(seconds_before + time.monotonic() - started, 1),
                **({} if mixture is None else {"problems_right": mixture.right(model)}),
            })  # fmt: skip
            model.train()
            window.clear()
            _write_log(out / "log.csv", log)

    train(model, loss_of, plan.schedule, checkpoint=out / "training.pt", every=every, after=after)
    snapshots["final"] = weight_statistics(model)
    _save(model, wrapped, out)
    (out / "weights.json").write_text(json.dumps(snapshots, indent=1) + "\n")
    if mixture is not None:
        steps = range(min(_KEPT, plan.schedule.steps))
        kept = [torch.cat([text_of(step), mixture.drawn(step, LENGTH)[0]]) for step in steps]
        np.save(out / ROWS, torch.cat(kept).numpy().astype("<u2"))
    card = _card(plan, parts, names, stream, log[-1]) | about | _about_problems(plan, log[-1])
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    return card


def _begin(plan: Plan, out: Path) -> tuple[LlamaForCausalLM, dict[str, str]]:
    """The model that training begins with, and what the card says of where it comes from."""
    found = None if plan.start is None else _checked_start(plan)
    plan_text, kept = json.dumps(asdict(plan), indent=1) + "\n", out / "plan.json"
    if kept.exists() and kept.read_text() != plan_text:
        raise ValueError(f"{out}: there is a training of another plan in this directory, see {kept.name}")
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(plan_text)
    if found is None:
        torch.manual_seed(plan.seed)
        config = LlamaConfig(**plan.shape, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, dtype="float32")
        return LlamaForCausalLM(config), {}
    shutil.copyfile(found.path / "tokenizer.json", out / "tokenizer.json")
    model = LlamaForCausalLM.from_pretrained(found.path, dtype=torch.float32)
    return model, {"start_sha256": found.sha256}


def _checked_start(plan: Plan) -> Checkpoint:
    assert plan.start is not None
    found = load_model(plan.start)
    shape = {name: getattr(found.config, name, None) for name in plan.shape}
    if shape != plan.shape or found.config.model_type != "llama" or found.dial is not None:
        raise ValueError(f"{plan.start}: a {found.config.model_type} of {shape}, expected a llama of {plan.shape}")
    return found


def _mixture(plan: Plan, tokenizer: Tokenizer) -> Mixture | None:
    letters = Letters.of(tokenizer, START) if plan.reasoning else None
    if letters is None:
        return None
    return Mixture(letters=letters, rows=plan.problem_rows, batch_rows=plan.batch_rows, seed=plan.seed)


def _about_problems(plan: Plan, last: dict) -> dict:
    """What the card says of problems, if any were among the text."""
    if not plan.reasoning:
        return {}
    rows = f"{plan.problem_rows} of {plan.batch_rows} rows of every batch"
    what = (f"problems of suite.reasoning of 1 to {LONGEST} steps, none held out; the loss of them is half that of "
            f"values, half that of what else is written, weighed against the text's by rows")  # fmt: skip
    return {"problems": f"{rows}: {what}", "held_out_problems_right": last["problems_right"]}


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, place: Path) -> None:
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)


def _prepare(out: Path) -> tuple[Tokenizer, dict[Part, list[np.ndarray]], dict[Part, list[str]]]:
    texts = {part: read_files(part) for part in get_args(Part)}
    path = out / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path)) if path.exists() else train_tokenizer(list(texts["training"].values()))
    tokenizer.save(str(path))
    parts: dict[Part, list[np.ndarray]] = {
        part: [np.array(found.ids) for found in tokenizer.encode_batch([START + text for text in files.values()])]
        for part, files in texts.items()
    }
    return tokenizer, parts, {part: list(files) for part, files in texts.items()}


def _card(plan: Plan, parts: dict[Part, list[np.ndarray]], names: dict, stream: np.ndarray, last: dict) -> dict:
    """What the checkpoint was made from and what the token files must hash to."""
    evaluation, _ = cut_rows(parts["evaluation"], LENGTH)
    dropped = np.flatnonzero(repeats_of(evaluation, stream)).tolist()
    card = {
        "text": f"Python source of sympy {PINNED}, byte-level BPE of {VOCABULARY}, rows of {LENGTH} tokens",
        "license": "sympy: BSD-3-Clause (its text is not shipped); this checkpoint: Apache-2.0",
        "plan": asdict(plan),
        "environment": {"torch": torch.__version__, "python": platform.python_version(),
                        "threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()},
        "validation_perplexity": last["validation_perplexity"],
        "training_seconds": last["seconds"],
        "dropped_evaluation_rows": dropped,
        "dropped_because": f"they share {RUN} consecutive tokens with training",
        "parts": {},
    }  # fmt: skip
    for part, documents in parts.items():
        rows, owners = cut_rows(documents, LENGTH)
        if part == "evaluation":
            rows, owners = np.delete(rows, dropped, axis=0), np.delete(owners, dropped)
        card["parts"][part] = {
            "files": len(names[part]), "tokens": int(sum(map(len, documents))), "rows": len(rows),
            "sha256": rows_sha256(rows, owners),
        }  # fmt: skip
    return card


def _read_log(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{key: json.loads(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _write_log(path: Path, log: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(log[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(log)
