import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.adaptation.distillation import cakld, confidence_of, forward_kl, hidden_error, reverse_kl


def logits(seed, rows=5, vocabulary=7):
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocabulary, generator=draw, dtype=torch.float64) * 3 for _ in range(2))


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_a_divergence_is_never_negative_and_zero_for_equal_distributions(seed, confidence):
    student, teacher = logits(seed)
    losses = [forward_kl(student, teacher), reverse_kl(student, teacher), cakld(student, teacher, confidence)]
    assert all(float(loss) > 0 for loss in losses)
    same = teacher + 4.2  # logits up to a constant
    for loss in (forward_kl(same, teacher), reverse_kl(same, teacher), cakld(same, teacher, confidence)):
        assert abs(float(loss)) < 1e-12


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_confidence_goes_from_the_forward_to_the_reverse_divergence(seed, confidence):
    student, teacher = logits(seed)
    forward, reverse = float(forward_kl(student, teacher)), float(reverse_kl(student, teacher))
    assert math.isclose(float(cakld(student, teacher, confidence)), confidence * reverse + (1 - confidence) * forward)
    assert float(cakld(student, teacher, 0.0)) == forward and float(cakld(student, teacher, 1.0)) == reverse
    with pytest.raises(ValueError, match=r"confidence 1\.5"):
        cakld(student, teacher, 1.5)


def test_against_the_library_and_the_closed_form_of_the_gradient():
    student, teacher = logits(3)
    student.requires_grad_(True)
    loss = forward_kl(student, teacher)
    ours, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
    library = torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    assert math.isclose(loss.item(), library.item(), rel_tol=1e-12)
    loss.backward()
    assert torch.allclose(student.grad, (ours.exp() - theirs.exp()).detach() / len(student), atol=1e-15)
    assert torch.autograd.gradcheck(lambda x: reverse_kl(x, teacher), student.detach().requires_grad_(True))


def test_no_gradient_reaches_the_teacher():
    student, teacher = logits(4)
    student.requires_grad_(True), teacher.requires_grad_(True)
    (cakld(student, teacher, 0.5) + hidden_error(student, teacher)).backward()
    assert teacher.grad is None and student.grad is not None


def test_confidence_is_the_mean_probability_of_what_comes():
    teacher = torch.tensor([[0.0, math.log(3.0)], [math.log(9.0), 0.0]])
    assert math.isclose(confidence_of(teacher, torch.tensor([1, 1])), (0.75 + 0.1) / 2, rel_tol=1e-6)


def test_hidden_errors_are_relative():
    teacher = torch.tensor([[3.0, 4.0]])
    assert math.isclose(float(hidden_error(1.1 * teacher, teacher)), 0.01, rel_tol=1e-5)
