"""Products with both Hessians against dense matrices by plain autograd, and against the loss as it changes."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from float64 import kept_in_float64
from scipy.sparse.linalg import eigsh
from torch.nn.attention import SDPBackend, sdpa_kernel

from suite.models.checkpoint import Checkpoint, load_model
from theory.spectra import pearlmutter_1994_curvature
from theory.spectra.pearlmutter_1994_curvature import Curvature
from theory.spectra.ubaru_2017_quadrature import density

BLOCKS, ROWS, LENGTH = 2, 2, 5
SMALL = {"vocab_size": 23, "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2,
         "num_key_value_heads": 1, "num_hidden_layers": BLOCKS}  # fmt: skip


def rows_of(seed=3, rows=ROWS, length=LENGTH):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, SMALL["vocab_size"], (rows, length)))


def entering(checkpoint, i, ids):
    hidden = checkpoint.embed(ids)
    for k in range(i):
        hidden = checkpoint.run(k, checkpoint.block(k), hidden)
    return hidden


@pytest.fixture(scope="module", params=["llama", "qwen3 tied"])
def dense(request, tmp_path_factory):
    """A model of under 2,000 weights, and the matrices of all linear weights of its blocks by double backward."""
    architecture, options = tiny.ARCHITECTURES[request.param]
    whole = tiny.model_of(architecture, **{**options, **SMALL, "head_dim": 4})
    assert sum(p.numel() for p in whole.parameters()) < 20_000
    path = str(tiny.save(whole, tmp_path_factory.mktemp("small")))
    tables = whole.model.rotary_emb.inv_freq
    whole = whole.double()
    whole.model.rotary_emb.inv_freq = tables  # a checkpoint's stay as they are
    checkpoint, ids = load_model(path, dtype=torch.float64), rows_of()
    names = [checkpoint.architecture.full_name(i, x) for i in range(BLOCKS) for x in checkpoint.architecture.layers]
    weights = [whole.get_submodule(name).weight.requires_grad_(True) for name in names]

    def flat(gradients):
        return torch.cat([g.detach().flatten() for g in gradients])

    with kept_in_float64(), sdpa_kernel(SDPBackend.MATH):
        log_p = whole(ids).logits[:, :-1].log_softmax(-1)
        loss = -log_p.gather(-1, ids[:, 1:, None]).mean()
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, create_graph=True)])
        hessian = torch.stack([flat(torch.autograd.grad(g, weights, retain_graph=True)) for g in gradient])
        # with r = sqrt p (log p)' the Fisher information is the mean over tokens of sum_y r_y r_y^T
        fisher, tokens = torch.zeros_like(hessian), log_p[..., 0].numel()
        for each in log_p.flatten(0, 1):
            J = torch.stack([flat(torch.autograd.grad(x, weights, retain_graph=True)) for x in each])
            fisher += J.T @ (each.detach().exp()[:, None] * J) / tokens
    at = dict(zip(names, torch.tensor([0, *(w.numel() for w in weights)]).cumsum(0).tolist(), strict=False))
    sizes = {name: w.numel() for name, w in zip(names, weights, strict=True)}
    return SimpleNamespace(checkpoint=checkpoint, ids=ids, gradient=gradient.detach().numpy(), at=at, sizes=sizes,
                           matrices={"hessian": hessian.numpy(), "gauss_newton": fisher.numpy()})  # fmt: skip


def part_of(dense, i, layers):
    """The places of some layers' weights among all, and their curvature."""
    names = [dense.checkpoint.architecture.full_name(i, layer) for layer in layers]
    places = np.concatenate([np.arange(dense.at[n], dense.at[n] + dense.sizes[n]) for n in names])
    return places, Curvature(dense.checkpoint, i, layers, entering(dense.checkpoint, i, dense.ids), dense.ids)


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
@pytest.mark.parametrize("i", range(BLOCKS))
@pytest.mark.parametrize("layers", [("mlp.down_proj",), ("self_attn.q_proj", "self_attn.k_proj"), None])
def test_products_are_those_of_the_dense_matrices(dense, kind, i, layers):
    layers = layers or dense.checkpoint.architecture.layers
    with kept_in_float64():
        places, curvature = part_of(dense, i, layers)
        A, expected = getattr(curvature, kind)(), dense.matrices[kind][np.ix_(places, places)]
        size = np.linalg.norm(expected, 2)
        vectors = np.random.default_rng(0).normal(size=(curvature.n, 3)) / curvature.n**0.5
        # some 1e3 roundings of terms up to a few times the matrix's norm
        assert np.abs(A @ vectors - expected @ vectors).max() < 1e-11 * size
        assert np.abs(curvature.gradient() - dense.gradient[places]).max() < 1e-11 * np.abs(dense.gradient).max()


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_extreme_eigenvalues_are_the_dense_matrices(dense, kind):
    with kept_in_float64():
        places, curvature = part_of(dense, 1, dense.checkpoint.architecture.layers)
        values = np.linalg.eigvalsh(dense.matrices[kind][np.ix_(places, places)])
        size, start = np.abs(values).max(), np.random.default_rng(6).normal(size=curvature.n)
        which, wanted = ("BE", values[[0, -1]]) if kind == "hessian" else ("LA", values[-2:])
        found = eigsh(getattr(curvature, kind)(), k=2, which=which, return_eigenvectors=False, v0=start, tol=1e-8)
    assert np.abs(np.sort(found) - wanted).max() <= 1e-6 * size
    assert kind == "hessian" or values[0] > -1e-12 * size


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_the_trace_by_quadrature_is_within_its_error_bar(dense, kind):
    with kept_in_float64():
        places, curvature = part_of(dense, 1, dense.checkpoint.architecture.layers)
        found = density(getattr(curvature, kind)(), starts=12, steps=4, rng=np.random.default_rng(4))
    expected = dense.matrices[kind][np.ix_(places, places)]
    assert abs(found.trace().value - np.trace(expected)) < 3.5 * found.trace().se  # t of 11: one in 200 beyond
    squares = found.trace(np.square)
    assert abs(squares.value - np.sum(expected**2)) < 3.5 * squares.se


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tiny.save(tiny.model_of("llama", **SMALL), tmp_path_factory.mktemp("small"))
    checkpoint = load_model(str(path), dtype=torch.float64)
    return checkpoint, rows_of(5)


@pytest.mark.parametrize("i", range(BLOCKS))
def test_the_loss_changes_by_gradient_and_curvature_to_third_order(small, i):
    checkpoint, ids = small
    with kept_in_float64():
        curvature = Curvature(checkpoint, i, checkpoint.architecture.layers, entering(checkpoint, i, ids), ids)
        v = np.random.default_rng(1).normal(size=curvature.n)
        slope, bend = curvature.gradient() @ v, v @ (curvature.hessian() @ v) / 2
        left = [curvature.change(t * v) - t * slope - t**2 * bend for t in (1e-3, 2e-3)]
    assert abs(slope) > 1e-3 and abs(bend) > 1e-3
    assert left[1] / left[0] == pytest.approx(8, rel=0.05)  # what is left is cubic, and quartic by a factor 1e-3 less


def test_rows_in_parts_are_the_rows_at_once(small, monkeypatch):
    checkpoint, ids = small
    with kept_in_float64():
        hidden, layers = entering(checkpoint, 1, ids), ("self_attn.v_proj", "mlp.up_proj")
        whole = Curvature(checkpoint, 1, layers, hidden, ids)
        monkeypatch.setattr(pearlmutter_1994_curvature, "_LOGITS", 1)
        parts = Curvature(checkpoint, 1, layers, hidden, ids)
        v = np.random.default_rng(2).normal(size=whole.n)
        for a, b in ((whole.gradient(), parts.gradient()), (whole.hessian() @ v, parts.hessian() @ v),
                     (whole.gauss_newton() @ v, parts.gauss_newton() @ v)):  # fmt: skip
            assert np.abs(a - b).max() <= 1e-13 * np.abs(a).max() * whole.n
        assert whole.change(v) == pytest.approx(parts.change(v), rel=1e-12)


def test_vectors_are_the_layers_in_order_and_others_are_refused(small):
    checkpoint, ids = small
    layers = ("mlp.down_proj", "self_attn.q_proj")
    curvature = Curvature(checkpoint, 0, layers, checkpoint.embed(ids), ids)
    matrices = {"self_attn.q_proj": torch.full((8, 8), 2.0), "mlp.down_proj": torch.arange(96.0).reshape(8, 12)}
    assert curvature.n == 160
    assert curvature.flat(matrices).tolist() == [*range(96), *[2.0] * 64]
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(160,\)"):
        curvature.change(np.ones(3))


@pytest.mark.parametrize("blocks", [4, 9])
def test_blocks_in_memory_do_not_grow_with_depth(tmp_path, monkeypatch, blocks):
    read, alive, most = Checkpoint.block, weakref.WeakSet(), []

    def block(self, i, *rest):
        found = read(self, i, *rest)
        alive.add(found)
        most.append(len(alive))
        return found

    monkeypatch.setattr(Checkpoint, "block", block)
    checkpoint = load_model(str(tiny.save(tiny.model_of("llama", **{**SMALL, "num_hidden_layers": blocks}), tmp_path)))
    ids = rows_of(7)
    curvature = Curvature(checkpoint, 0, ("mlp.down_proj",), checkpoint.embed(ids), ids, resident=2)
    curvature.hessian() @ np.ones(curvature.n)
    assert max(most) <= 2 + 2 and len(most) >= blocks  # the held ones, the layer's own, one that is being read
