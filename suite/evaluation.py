"""Evaluation: the quantized model against the unquantized one, token by token on the same tokens."""

from dataclasses import dataclass

import numpy as np
import torch

from suite.models.checkpoint import Checkpoint
from suite.tokens import Tokens

_LOGITS = 1 << 23  # logits held at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Per predicted token, (rows, length - 1), float64: log-likelihoods in nats, divergence in nats, agreement."""

    nll: np.ndarray
    paired: "Paired | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """What needs the unquantized model on the same tokens, likewise."""

    nll: np.ndarray
    kl: np.ndarray
    agree: np.ndarray


@dataclass(frozen=True, slots=True)
class Ended:
    """A model and its last hidden states (rows, length, hidden) on some tokens; its own norm and head follow."""

    checkpoint: Checkpoint
    hidden: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The quality fields of a record; without the unquantized model there is the perplexity alone."""

    ppl: float
    ppl_se: float | None = None
    ppl_base: float | None = None
    kl: float | None = None
    kl_se: float | None = None
    kl_p99: float | None = None
    top1: float | None = None
    top1_se: float | None = None


@torch.no_grad()
def compare(quantized: Ended, base: Ended | None, tokens: torch.Tensor) -> Comparison:
    """Compare the quantized with the unquantized model on `tokens`, or measure it alone; each by its own head."""
    rows = max(1, _LOGITS // (tokens.shape[1] * int(quantized.checkpoint.config.vocab_size)))
    parts, nlls = [], []
    for at in range(0, len(tokens), rows):
        follows = tokens[at : at + rows, 1:, None]
        log_q = _log_likelihoods(quantized, at, rows)
        nlls.append(-log_q.gather(-1, follows)[..., 0])
        if base is not None:
            log_p = _log_likelihoods(base, at, rows)
            divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
            same = log_p.argmax(-1) == log_q.argmax(-1)
            parts.append([-log_p.gather(-1, follows)[..., 0], divergence, same])
    columns = [torch.cat(column).double().numpy() for column in zip(*parts, strict=True)]
    paired = Paired(nll=columns[0], kl=columns[1], agree=columns[2]) if columns else None
    return Comparison(nll=torch.cat(nlls).double().numpy(), paired=paired)


def _log_likelihoods(model: Ended, at: int, rows: int) -> torch.Tensor:
    return model.checkpoint.logits(model.hidden[at : at + rows, :-1]).log_softmax(-1)


def summarize(found: Comparison, tokens: Tokens) -> Quality:
    """Means over tokens with their clustered standard errors; the perplexity's by the delta method."""
    ppl, paired = float(np.exp(found.nll.mean())), found.paired
    if paired is None:
        return Quality(ppl=ppl)
    return Quality(
        ppl=ppl,
        ppl_se=ppl * clustered_se(found.nll - paired.nll, tokens.clusters),
        ppl_base=float(np.exp(paired.nll.mean())),
        kl=float(paired.kl.mean()),
        kl_se=clustered_se(paired.kl, tokens.clusters),
        kl_p99=float(np.quantile(paired.kl, 0.99)),
        top1=float(paired.agree.mean()),
        top1_se=clustered_se(paired.agree, tokens.clusters),
    )


def clustered_se(values: np.ndarray, clusters: np.ndarray) -> float:
    """Standard error of the mean of `values` (rows, length) whose rows fall into `clusters` (rows,).

    The ratio estimator's linearization: sqrt(G / (G-1) sum_g (S_g - mean n_g)^2) / n, with the sum S_g and the count
    n_g of each of the G clusters. NaN for a single cluster.

    >>> float(clustered_se(np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0, 0, 1, 1])))
    0.5
    """
    _, which = np.unique(clusters, return_inverse=True)
    sums = np.bincount(which, weights=values.sum(axis=1))
    counts = np.bincount(which) * values.shape[1]
    groups = len(sums)
    if groups < 2:
        return float("nan")
    residual = sums - values.mean() * counts
    return float(np.sqrt(groups / (groups - 1) * (residual**2).sum()) / counts.sum())
