"""Columns that are coded together: block LDLQ against its identity and the textbook, and its own coordinates."""

import json
from dataclasses import dataclass

import pytest
import torch
from feedback import EPS, damping, gaussian
from golden import matrices, needed, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.hadamard import is_hadamard_size
from suite.quantize import quantize_matrix, relative_errors
from suite.quantized import Quantized
from suite.recipe import Recipe, Target, parse
from suite.rounding import Feedback
from suite.rounding.feedback import factor
from suite.transforms import Frame, Incoherence, RotateHeads

CLOSE = 1e6 * EPS  # relative: some 30 solves with Gram matrices of condition 1e4


@dataclass(frozen=True)
class Table:
    """A toy grid of vectors: `width` columns of a row take the nearest of 16 random vectors."""

    width: int
    mask_size, regroups, group_size = 0, False, 1

    @property
    def block(self):
        return (1, self.width)

    @property
    def vectors(self):
        return gaussian(77, 16, self.width)

    def fit(self, W, importance=None):
        return self

    def snap(self, x, columns):
        assert columns.start % self.width == 0
        missing = -x.shape[1] % self.width
        padded = torch.nn.functional.pad(x, (0, missing))
        codes = torch.cdist(padded.reshape(len(x), -1, self.width), self.vectors[None]).argmin(-1)
        return codes, self.decode(codes)[:, : x.shape[1]]

    def decode(self, codes):
        return self.vectors[codes].flatten(1)


def gram(seed, n_in):
    X = gaussian(seed, 3 * n_in, n_in) @ gaussian(seed + 1, n_in, n_in)
    return X.T @ X / len(X)


def blocks(n_in, width):
    return [slice(start, min(start + width, n_in)) for start in range(0, n_in, width)]


def textbook(W, H, table, order):
    """LDLQ as QuIP# says it: H = L D L^T by elimination of whole blocks, those first that are rounded last."""
    parts = blocks(len(H), table.width)
    if order == "reversed":
        parts = parts[::-1]
    L, left = torch.eye(len(H), dtype=H.dtype), H.clone()
    for k in parts[::-1]:
        column = left[:, k] @ torch.linalg.inv(left[k, k])
        left = left - column @ left[k, :]
        L[:, k] = column
    Q, codes = torch.zeros_like(W), {}
    for k in parts:
        L_k = L[:, k].clone()
        L_k[k] -= torch.eye(L_k.shape[1], dtype=H.dtype)
        done = torch.zeros(len(H), dtype=torch.bool)
        for other in parts[: parts.index(k)]:
            done[other] = True
        pushed = W[:, k] + ((W - Q) * done) @ L_k
        codes[k.start], Q[:, k] = table.snap(pushed, k)
    return torch.cat([codes[start] for start in sorted(codes)], 1)


@pytest.mark.parametrize("order", ["given", "reversed"])
@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), n_in=st.integers(1, 33), width=st.sampled_from([2, 3, 8]), damping=damping,
       batch=st.sampled_from([1, 8, 128]))  # fmt: skip
def test_blocks_follow_the_textbook_and_the_identity(order, seed, n_in, width, damping, batch):
    W, H, table = gaussian(seed, 3, n_in), gram(seed + 1, n_in), Table(width)
    found = Feedback(order=order, damping=damping, block=batch).round(W, table, H, torch.Generator())
    wide = H + damping * H.diagonal().mean() * torch.eye(n_in, dtype=H.dtype)
    assert torch.equal(found.codes, textbook(W, wide, table, order))
    R, perm, _ = factor(H, order, damping, width)
    E = (W - table.decode(found.codes)[:, :n_in])[:, perm]
    error = ((E @ wide[perm][:, perm]) * E).sum()  # block by block |(w'_k - q_k) R_kk|^2, which is |(W - Q) R|^2
    assert torch.isclose(((E @ R) ** 2).sum(), error, rtol=CLOSE)


class Whole(Table):
    """Whole numbers, one by one."""

    def snap(self, x, columns):
        return x.round().to(torch.int32), x.round()


@needed
@pytest.mark.parametrize("weights", ["gaussian", "student"])
def test_blocks_of_one_are_gptq_reversed_code_for_code(weights):
    """The published form of GPTQ, on the inverse, from the last column on; QuIP#'s release gives the same error."""
    W, H = matrices(11, weights)
    W = 2 * W / W.std(correction=0)
    found = Feedback(order="reversed").round(W, Whole(1), H, torch.Generator())
    wide = H + 0.01 * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    U = torch.linalg.cholesky(torch.linalg.inv(wide.flip(0, 1)), upper=True)
    work, codes = W.flip(1).clone(), []
    for j in range(len(H)):
        codes.append(work[:, j].round())
        work[:, j:] -= ((work[:, j] - codes[-1]) / U[j, j])[:, None] * U[j, j:]
    Q = torch.stack(codes[::-1], 1)
    assert torch.equal(found.codes, Q.to(torch.int32))
    (row,) = (r for r in rows("lattice-trellis") if (r["method"], r["weights"]) == ("ldlq_scalar_vs_gptq", weights))
    assert relative_errors(W, Q, H)[1] == pytest.approx(row["hnmse"], rel=1e-9)


def test_on_white_inputs_blocks_are_rounded_to_nearest():
    W, table = gaussian(1, 5, 21), Table(4)
    found = Feedback(order="reversed").round(W, table, torch.eye(21, dtype=torch.float64), torch.Generator())
    assert torch.equal(found.codes, table.snap(W, slice(0, 21))[0])


def test_what_tears_blocks_apart_is_refused():
    W, H = gaussian(1, 2, 16), gram(2, 16)
    for order in ("decreasing", "pivot"):
        with pytest.raises(ValueError, match="blocks of 4 columns stay whole"):
            Feedback(order=order).round(W, Table(4), H, torch.Generator())


SIZES = [n for n in range(1, 41) if is_hadamard_size(n)]


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), n_out=st.sampled_from(SIZES), n_in=st.sampled_from(SIZES))
def test_frames_turn_and_turn_back(seed, n_out, n_in):
    W, H, E = gaussian(seed, n_out, n_in), gram(seed + 1, n_in), gaussian(seed + 2, n_out, n_in)
    frame = Incoherence().fit((n_out, n_in), torch.Generator().manual_seed(seed))
    assert torch.allclose(frame.back(frame.into(W)), W, rtol=0, atol=1e-12)
    assert torch.isclose(frame.into(W).norm(), W.norm(), rtol=1e-12)
    turned = frame.into(E)
    assert torch.isclose(((turned @ frame.gram(H)) * turned).sum(), ((E @ H) * E).sum(), rtol=1e-9)
    for stored in (frame, frame.tuned({key: 1.1 * value for key, value in frame.tunable().items()})):
        payload = stored.to_bytes()
        assert 8 * len(payload) == stored.n_bits
        again, kept = Frame.from_bytes(payload, (n_out, n_in), stored.bits), stored.as_stored()
        assert torch.equal(again.rows, kept.rows) and torch.equal(again.columns, kept.columns)


def test_signs_differ_from_matrix_to_matrix_and_are_fair():
    generator = torch.Generator().manual_seed(0)
    frames = [Incoherence().fit((64, 128), generator) for _ in range(64)]
    signs = torch.stack([torch.cat([frame.rows, frame.columns]) for frame in frames])
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean(0).abs().max() < 5 / 8  # five standard errors of 64 fair signs
    assert not torch.equal(signs[0], signs[1])


def test_a_size_without_a_hadamard_matrix_is_refused():
    for shape, side in (((92, 8), "outputs"), ((8, 92), "inputs")):
        with pytest.raises(ValueError, match=f"order 92 can be built, which is the number of {side}"):
            Incoherence().fit(shape, torch.Generator())


@pytest.mark.parametrize("coding", ["Fixed()", "Ans()"])
def test_a_matrix_keeps_its_frame_and_is_charged_for_it(coding):
    W, H = gaussian(3, 20, 48), gram(4, 48)
    text = (
        f"Recipe(transforms=(Incoherence(),), weights=Target(Integer(bits=2, group=16), Feedback()), coding={coding})"
    )
    plain = quantize_matrix(W, recipe=parse(text.replace("Incoherence(),", "")), H=H)
    q = quantize_matrix(W, recipe=parse(text), H=H)
    assert q.frame is not None and plain.frame is None
    assert coding != "Fixed()" or q.n_bits == plain.n_bits + 72  # 68 signs, in whole bytes
    payload = q.to_bytes()
    assert len(payload) == -(-q.n_bits // 8)
    back = Quantized.from_bytes(payload, json.loads(json.dumps(q.header())))
    assert torch.equal(back.dequantize(), q.dequantize()) and back.n_bits == q.n_bits
    with pytest.raises(ValueError, match="payload"):
        Quantized.from_bytes(payload[:1], q.header())


def test_incoherence_helps_where_weights_stand_out():
    W, H = gaussian(5, 64, 64), gram(6, 64)
    W[::7] *= 8  # rows and
    W[:, ::9] *= 8  # columns that stand out
    text = "Recipe({}weights=Target(Integer(bits=3, group='tensor'), Feedback()))"
    plain, turned = (quantize_matrix(W, recipe=parse(text.format(x)), H=H)
                     for x in ("", "transforms=(Incoherence(),), "))  # fmt: skip
    assert relative_errors(W, turned.dequantize(), H)[1] < relative_errors(W, plain.dequantize(), H)[1] / 4


def test_recipes_say_what_does_not_go_together():
    vectors = parse("Target(Integer(bits=2))").weights.grid
    assert Recipe(transforms=(Incoherence(), RotateHeads()), weights=Target(vectors)).unsupported is not None
    assert Recipe(transforms=(Incoherence(), Incoherence()), weights=Target(vectors)).unsupported is not None
    assert Recipe(transforms=(RotateHeads(), Incoherence()), weights=Target(vectors)).unsupported is None
