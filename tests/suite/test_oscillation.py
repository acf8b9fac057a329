import pytest
import torch

from suite.adaptation.oscillation import Disorder, Flips


def test_a_turn_is_a_change_against_the_one_before():
    flips = Flips.of(torch.tensor([0, 0, 0, 0], dtype=torch.uint8))
    # never, once up, up twice, up and down again
    for codes in ([0, 1, 1, 1], [0, 1, 2, 1], [0, 1, 2, 0]):
        flips.see(torch.tensor(codes, dtype=torch.uint8))
    assert flips.share(10) == 0.25 and flips.share(1) == 0.25
    flips.see(torch.tensor([0, 1, 2, 0], dtype=torch.uint8))
    assert flips.share(1) == 0.0 and flips.share(2) == 0.25
    with pytest.raises(ValueError, match=r"shape \(3,\): expected \(4,\)"):
        flips.see(torch.zeros(3))


def test_codes_of_unsigned_bytes_go_down_too():
    flips = Flips.of(torch.tensor([255], dtype=torch.uint8))
    for code in (0, 255):
        flips.see(torch.tensor([code], dtype=torch.uint8))
    assert flips.share(1) == 1.0


def test_a_loss_that_pulls_between_two_levels_makes_weights_oscillate():
    """As in Nagel et al.: the best weight lies between two levels, and straight-through gradients alternate."""
    weights, scale = torch.tensor([0.9, 0.1]), 1.0
    aim = torch.tensor([0.6, 0.0])
    flips = Flips.of((weights / scale).round())
    for _ in range(200):
        weights = weights - 0.05 * 2 * ((weights / scale).round() * scale - aim)
        flips.see((weights / scale).round())
    assert flips.share(50) == 0.5


def test_disorder_is_the_share_of_pairs_of_other_signs():
    gradients = torch.tensor([[1.0, 1.0, 0.0], [-2.0, 3.0, 1.0], [1.0, 1.0, -1.0]])
    followed = Disorder.of(gradients[0])
    with pytest.raises(ValueError, match="1 update: expected at least 2"):
        followed.shares  # noqa: B018
    for later in gradients[1:]:
        followed.see(later)
    assert followed.shares.tolist() == [1.0, 0.0, 0.5]
    with pytest.raises(ValueError, match=r"shape \(2,\): expected \(3,\)"):
        followed.see(gradients[0, :2])
