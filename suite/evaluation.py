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
    nll_base: np.ndarray
    kl: np.ndarray
    agree: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The quality fields of a record."""

    ppl: float
    ppl_se: float
    ppl_base: float
    kl: float
    kl_se: float
    kl_p99: float
    top1: float
    top1_se: float


@torch.no_grad()
def compare(checkpoint: Checkpoint, base: torch.Tensor, hidden: torch.Tensor, tokens: torch.Tensor) -> Comparison:
    """Compare last hidden states (rows, length, hidden) of the unquantized and the quantized model on `tokens`."""
    rows = max(1, _LOGITS // (tokens.shape[1] * int(checkpoint.config.vocab_size)))
    parts = []
    for x0, x1, ids in zip(base.split(rows), hidden.split(rows), tokens.split(rows), strict=True):
        log_p = checkpoint.logits(x0[:, :-1]).log_softmax(-1)
        log_q = checkpoint.logits(x1[:, :-1]).log_softmax(-1)
        follows = ids[:, 1:, None]
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
        same = log_p.argmax(-1) == log_q.argmax(-1)
        parts.append([-log_q.gather(-1, follows)[..., 0], -log_p.gather(-1, follows)[..., 0], divergence, same])
    nll, nll_base, kl, agree = (torch.cat(column).double().numpy() for column in zip(*parts, strict=True))
    return Comparison(nll=nll, nll_base=nll_base, kl=kl, agree=agree)


def summarize(found: Comparison, tokens: Tokens) -> Quality:
    """Means over tokens with their clustered standard errors; the perplexity's by the delta method."""
    ppl = float(np.exp(found.nll.mean()))
    return Quality(
        ppl=ppl,
        ppl_se=ppl * clustered_se(found.nll - found.nll_base, tokens.clusters),
        ppl_base=float(np.exp(found.nll_base.mean())),
        kl=float(found.kl.mean()),
        kl_se=clustered_se(found.kl, tokens.clusters),
        kl_p99=float(np.quantile(found.kl, 0.99)),
        top1=float(found.agree.mean()),
        top1_se=clustered_se(found.agree, tokens.clusters),
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
