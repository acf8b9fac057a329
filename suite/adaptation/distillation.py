"""Distillation: losses of a student's logits, or hidden states, against a teacher's on the same tokens, in nats.

All are means over positions; natural logarithms throughout; a teacher's values are constants.
"""

import torch
from torch.nn.functional import log_softmax


def forward_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of logits (..., vocabulary): covers everything the teacher thinks possible.

    Its gradient with respect to a student's logits is p_student - p_teacher, over the number of positions.
    """
    return _kl(log_softmax(teacher.detach(), -1), log_softmax(student, -1)).mean()


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher) of logits (..., vocabulary): stays where the teacher is sure."""
    return _kl(log_softmax(student, -1), log_softmax(teacher.detach(), -1)).mean()


def cakld(student: torch.Tensor, teacher: torch.Tensor, confidence: float) -> torch.Tensor:
    """Confidence-aware KL of BitDistiller: `confidence` of the reverse, and the rest of the forward one.

    Du, Zhang, Cao, Guo, Cao, Chu, Xu 2024, "BitDistiller: Unleashing the Potential of Sub-4-Bit LLMs via
    Self-Distillation", arXiv:2402.10631, section 3.3. Raises `ValueError` for a confidence outside [0, 1].
    """
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence {confidence}: expected between 0 and 1")
    ours, theirs = log_softmax(student, -1), log_softmax(teacher.detach(), -1)
    return (confidence * _kl(ours, theirs) + (1 - confidence) * _kl(theirs, ours)).mean()


def confidence_of(teacher: torch.Tensor, targets: torch.Tensor) -> float:
    """The mean probability that logits (..., vocabulary) give to what comes, `targets` (...)."""
    found = log_softmax(teacher.detach(), -1).gather(-1, targets[..., None])
    return float(found.exp().mean())


def hidden_error(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of hidden states (..., hidden) over the teacher's mean square."""
    teacher = teacher.detach()
    return (student - teacher).square().mean() / teacher.square().mean()


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats by position, from log-probabilities (..., vocabulary)."""
    return (p.exp() * (p - q)).sum(-1)
