"""From models' names to what the store says of them at problems."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from suite.environment import code_version, environment_key
from suite.evaluation import clustered_se
from suite.models.checkpoint import Checkpoint, load_model
from suite.packed import Header, holds_packed
from suite.readback import PackedModel, find_base
from suite.reasoning.letters import Letters
from suite.reasoning.measure import marks, text_nats
from suite.reasoning.problems import Problem, draw_distinct
from suite.reasoning.scores import Change, Marks, Scores
from suite.runtime.model import Runtime, packed_runtime, plain_runtime
from suite.store import ReasoningRow
from suite.tokens import Tokens, load_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What models are asked: as many `problems` of each of `steps` steps as there are, and `text_tokens` of text.

    Problems are drawn by `seed`. Without `text_tokens` no perplexity is measured.
    """

    problems: int = 500
    steps: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    seed: int = 0
    threads: int = 1
    evaluation: str | None = None
    text_tokens: int = 1 << 16
    command: str = "python"

    def __post_init__(self) -> None:
        if self.problems < 2 or not self.steps or min(self.steps) < 1:
            raise ValueError(f"{self.problems} problems of {self.steps} steps: expected 2 or more, of 1 step or more")

    def drawn(self, steps: int) -> list[Problem]:
        """The problems of so many steps."""
        return draw_distinct(np.random.default_rng((self.seed, steps)), steps, self.problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to be asked. A packed one has its `header` and `bpw`, and its `base` where that is to be had."""

    checkpoint: Checkpoint
    runtime: Callable[[], Runtime]
    base: Checkpoint | None = None
    header: Header | None = None
    bpw: float | None = None
    fallbacks: tuple[str, ...] = ()

    @classmethod
    def plain(cls, checkpoint: Checkpoint) -> "Subject":
        """An unquantized model."""
        return cls(checkpoint=checkpoint, runtime=partial(plain_runtime, checkpoint, torch.float32))

    @classmethod
    def open(cls, name: str, base: str | None = None) -> "Subject":
        """The model of this name, packed or not; `ValueError` in one line for what is none, and for another base."""
        if not holds_packed(Path(name)):
            return cls.plain(load_model(name))
        packed = PackedModel.open(name)
        found, missing = find_base(base, packed)
        names = packed.checkpoint.architecture
        blocks = [layer for layer in packed.payloads if layer not in (names.embedding, names.head)]
        sizes = [size for layer in blocks for size in packed.sizes({layer: packed.quantized(layer)})]
        bpw = sum(size[0] for size in sizes) / sum(size[3] for size in sizes) if sizes else None
        return cls(
            checkpoint=packed.checkpoint, runtime=partial(packed_runtime, packed, None), base=found,
            header=packed.header, bpw=bpw, fallbacks=() if found else (f"not paired with its base: {missing}",),
        )  # fmt: skip

    @property
    def whole(self) -> Checkpoint:
        """What text is tokenized for: the shipped model has rows of its own."""
        return self.base or self.checkpoint


@dataclass(frozen=True, slots=True)
class Found:
    """Marks by the number of steps, and negative log-likelihoods of text (rows, length - 1), if there is any."""

    marks: dict[int, Marks]
    text: np.ndarray | None


def measure_reasoning(names: list[str], task: Task, *, base: str | None = None) -> Iterator[list[ReasoningRow]]:
    """The rows of each model after the other, and of packed ones' bases before theirs, every model once.

    `base` names the packed models' unquantized one. Raises `ValueError` in one line, before anything is measured, for
    what is not a model, or not the base, for one that has no token for a character, and for a context too short.
    """
    if base is not None and not any(holds_packed(Path(name)) for name in names):
        raise ValueError(f"base {base}: {', '.join(names)} are not packed models, and their own bases")
    subjects = [Subject.open(name, base) for name in names]
    subjects = [one for subject in subjects for one in (*_base_of(subject), subject)]
    subjects = list({subject.checkpoint.sha256: subject for subject in subjects}.values())
    tasks = {subject.checkpoint.sha256: _Asked.of(subject, task) for subject in subjects}
    return _measured(subjects, task, tasks)


def _base_of(subject: Subject) -> list[Subject]:
    return [] if subject.base is None else [Subject.plain(subject.base)]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A model's problems by steps, and its text."""

    letters: Letters
    problems: dict[int, list[Problem]]
    text: Tokens | None

    @classmethod
    def of(cls, subject: Subject, task: Task) -> "_Asked":
        checkpoint = subject.checkpoint
        letters = Letters.of(checkpoint.tokenizer().backend_tokenizer, checkpoint.name)
        problems = {steps: task.drawn(steps) for steps in task.steps}
        longest = max(len(f"\n{found[0].asked}{found[0].written}") for found in problems.values())
        if longest > checkpoint.context:
            raise ValueError(f"problems of {max(task.steps)} steps have {longest} characters, "
                             f"{checkpoint.name} has a context of {checkpoint.context}")  # fmt: skip
        if not task.text_tokens:
            return cls(letters, problems, None)
        text = load_tokens(task.evaluation, "evaluation", subject.whole, min(2048, checkpoint.context))
        return cls(letters, problems, text.spread(task.text_tokens))

    def solved(self, subject: Subject) -> Found:
        runtime = subject.runtime()
        text = None if self.text is None else text_nats(runtime, self.text.tensor())
        return Found({steps: marks(runtime, self.letters, found) for steps, found in self.problems.items()}, text)


def _measured(subjects: list[Subject], task: Task, tasks: dict[str, _Asked]) -> Iterator[list[ReasoningRow]]:
    torch.set_num_threads(task.threads)
    found: dict[str, Found] = {}
    for subject in subjects:
        sha256 = subject.checkpoint.sha256
        asked = tasks[sha256]
        found[sha256] = asked.solved(subject)
        base = found.get(subject.base.sha256) if subject.base else None
        yield [_row(subject, task, asked, found[sha256], base, steps) for steps in task.steps]


def _row(subject: Subject, task: Task, asked: _Asked, found: Found, base: Found | None, steps: int) -> ReasoningRow:
    header, scores = subject.header, Scores.of(found.marks[steps])
    change = None if base is None else Change.of(found.marks[steps], base.marks[steps])
    reference = None if base is None else Scores.of(base.marks[steps])
    figures: dict[str, Any] = {}
    for name in ("answer", "right", "step", "value", "independent", "excess", "nats"):
        figures |= {name: getattr(scores, name).value, f"{name}_se": getattr(scores, name).error}
    for name in ("answer", "right", "step"):
        figures[f"{name}_base"] = None if reference is None else getattr(reference, name).value
        figures[f"{name}_change_se"] = None if change is None else getattr(change, name).error
    return ReasoningRow(
        model=subject.checkpoint.name, model_sha256=subject.checkpoint.sha256,
        base_sha256=header.model_sha256 if header else subject.checkpoint.sha256,
        method=header.method if header else None, recipe=header.recipe if header else None,
        bits=header.bits if header else None, bpw=subject.bpw, quantized_seed=header.seed if header else None,
        **_text(asked.text, found, base),
        problems_sha256=_hash(asked.problems[steps]), seed=task.seed, steps=steps,
        problems=len(asked.problems[steps]), **figures, by_place=json.dumps(scores.by_place),
        device="cpu", threads=task.threads, fallbacks=json.dumps(subject.fallbacks), code=code_version(),
        env=environment_key(task.threads), command=task.command,
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )  # fmt: skip


def _text(text: Tokens | None, found: Found, base: Found | None) -> dict[str, Any]:
    """The fields of perplexity."""
    if text is None or found.text is None:
        return {"ppl": None, "ppl_base": None, "ppl_se": None, "data_sha256": None}
    ppl = float(np.exp(found.text.mean()))
    if base is None or base.text is None:
        return {"ppl": ppl, "ppl_base": None, "ppl_se": None, "data_sha256": text.sha256}
    error = ppl * clustered_se(found.text - base.text, text.clusters)
    return {"ppl": ppl, "ppl_base": float(np.exp(base.text.mean())), "ppl_se": error if math.isfinite(error) else None,
            "data_sha256": text.sha256}  # fmt: skip


def _hash(problems: list[Problem]) -> str:
    return hashlib.sha256("\n".join(problem.asked for problem in problems).encode()).hexdigest()
