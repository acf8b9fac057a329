"""What training minimizes: the loss of a micro-batch, of next tokens or against the unquantized model's predictions."""

from functools import partial
from typing import Protocol

import torch
from torch import nn

from suite.adaptation.distillation import cakld, confidence_of, forward_kl, hidden_error, reverse_kl
from suite.adaptation.training import Loss
from suite.quantize import generator_for

CONFIDENCE_BATCHES = 8  # micro-batches that the teacher's confidence is averaged over


class Taught(Protocol):
    """What a recipe says of the loss: `QuantizationAware`, or `LowRank`."""

    @property
    def rows(self) -> int:
        """Of a micro-batch."""

    @property
    def loss(self) -> str:
        """Of the next "tokens", or "forward-kl", "reverse-kl", "cakld" against the unquantized model."""

    @property
    def hidden(self) -> float:
        """The weight of the last hidden states' error."""


def objective(model: nn.Module, teacher: nn.Module | None, how: Taught, rows: torch.Tensor, seed: int) -> Loss:
    """The loss of a micro-batch of `rows` (n, length), by its number; rows are dealt out by `seed`."""
    batch = partial(batch_of, rows, rows_per_batch=how.rows, seed=seed)
    if teacher is None:
        return lambda part: next_token_loss(model, batch(part))
    confidence = 0.0
    if how.loss == "cakld":
        with torch.no_grad():
            seen = [batch(part) for part in range(CONFIDENCE_BATCHES)]
            found = [confidence_of(read(teacher, part)[1][:, :-1], part[:, 1:]) for part in seen]
        confidence = sum(found) / len(found)

    def loss_of(part: int) -> torch.Tensor:
        tokens = batch(part)
        with torch.no_grad():
            aim, theirs = read(teacher, tokens)
        hidden, ours = read(model, tokens)
        loss = _loss(how.loss, confidence, ours[:, :-1], theirs[:, :-1], tokens[:, 1:])
        return loss + how.hidden * hidden_error(hidden, aim) if how.hidden else loss

    return loss_of


def _loss(
    kind: str, confidence: float, ours: torch.Tensor, theirs: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    if kind == "tokens":
        return nn.functional.cross_entropy(ours.flatten(0, 1), targets.flatten())
    if kind == "cakld":
        return cakld(ours, theirs, confidence)
    return (forward_kl if kind == "forward-kl" else reverse_kl)(ours, theirs)


def next_token_loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """The mean negative log-likelihood in nats of all tokens of `tokens` (rows, length) but the first."""
    _, logits = read(model, tokens)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def read(model: nn.Module, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden states behind the norm (rows, length, hidden), and logits (rows, length, vocabulary)."""
    hidden = model.get_submodule("model")(input_ids=tokens, use_cache=False).last_hidden_state
    return hidden, model.get_submodule("lm_head")(hidden)


def batch_of(rows: torch.Tensor, part: int, *, rows_per_batch: int, seed: int) -> torch.Tensor:
    """Micro-batch number `part` of rows (n, length): every row once in an epoch, in an order drawn for it."""
    size = min(rows_per_batch, len(rows))
    epoch, index = divmod(part, len(rows) // size)
    order = torch.randperm(len(rows), generator=generator_for(seed, f"epoch {epoch}"))
    return rows[order[index * size : (index + 1) * size]]
