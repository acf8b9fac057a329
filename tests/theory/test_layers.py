import numpy as np
import pytest

from theory.layers import layer, weights


def test_a_layer_is_its_weights_and_the_inputs_of_a_seed():
    W, H = layer("reference", "self_attn.o_proj", 0)
    assert W.shape == (256, 256) == H.shape and W.dtype == H.dtype == np.float64
    assert pytest.approx(H.T) == H and np.linalg.eigvalsh(H)[0] > 0
    assert np.array_equal(W, weights("reference", "self_attn.o_proj"))
    again, other = layer("reference", "self_attn.o_proj", 0)[1], layer("reference", "self_attn.o_proj", 1)[1]
    assert np.array_equal(H, again) and not np.array_equal(H, other)
    assert np.trace(other) == pytest.approx(np.trace(H), rel=0.2)


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"layer 'head': reference has self_attn\.q_proj"):
        layer("reference", "head")
