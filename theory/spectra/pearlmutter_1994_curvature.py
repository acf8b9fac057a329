"""Products of a model's Hessian and of its Gauss-Newton matrix with a vector, one decoder block at a time.

Pearlmutter 1994, "Fast Exact Multiplication by the Hessian", Neural Computation 6(1); Schraudolph 2002, "Fast Curvature
Matrix-Vector Products for Second-Order Gradient Descent", Neural Computation 14(7).

Let L(W) be the mean negative log-likelihood of a text's next tokens, in nats, as a function of some weights W of block
i. Blocks are maps h_{k+1} = f_k(h_k), the last state h_n gives logits z = Z(h_n), and L = l(z). In a direction V

    forward     h'_{i+1} = (df_i / dW) V,      h'_{k+1} = J_k h'_k,                            J_k = df_k / dh_k
    at the end  c_n = d(l o Z) / dh_n,         c'_n its derivative along h'_n
    back        c_k = J_k^T c_{k+1},           c'_k = J_k^T c'_{k+1} + (J_k^T)' c_{k+1}
    at W        g = (df_i / dW)^T c_{i+1},     H V = (df_i / dW)^T c'_{i+1} + ((df_i / dW)^T)' c_{i+1}

where a prime is the derivative along the tangents. This is the full Hessian's product: each line on the right is the
derivative of the line on the left, forward over reverse. The Gauss-Newton matrix leaves out how the maps themselves
bend, that is, every term with c in it but for the curvature of l alone:

    c'_n = (dZ / dh_n)^T (l'' z'),   c'_k = J_k^T c'_{k+1},   G V = (df_i / dW)^T c'_{i+1},   l'' = (diag p - p p^T) / N

for N predicted tokens with probabilities p = softmax(z). G is positive semi-definite, holds no label, and is the Fisher
information of the mean token: E[(p - y)(p - y)^T] = diag p - p p^T for labels y that the model itself draws.

Blocks behind block i are read when they come up, at most `resident` are held, and each is differentiated on its own:
of a deeper model only more hidden states are in memory. Attention is the plain one, which alone has forward mode.
`curvlinops` (3.0.1) has such operators for models that are in memory whole, and is not used, not even by tests: by way
of `backpack` it installs a `torchvision` that the pinned torch cannot load, after which `transformers` has no models.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import nn
from torch.func import functional_call, grad, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from suite.models.architecture import linear
from suite.models.checkpoint import Checkpoint

_LOGITS = 1 << 22  # held at once, several times over
Weights = dict[str, torch.Tensor]


class Curvature:
    """The mean token loss, in nats, as a function of the weights of `layers` of block `i`; all else stays.

    `hidden` (rows, length, hidden) are the states that enter the block, `ids` (rows, length) the tokens. Vectors (N,)
    are of numpy, in the checkpoint's type: the weights (out, in) of the layers, flattened, in the order of `layers`.
    """

    def __init__(
        self, checkpoint: Checkpoint, i: int, layers: tuple[str, ...], hidden: torch.Tensor, ids: torch.Tensor, *,
        resident: int = 4,
    ):  # fmt: skip
        self._checkpoint, self._i = checkpoint, i
        self._block = lru_cache(maxsize=resident)(checkpoint.block)
        self._own = checkpoint.block(i)
        self._weights = {f"{layer}.weight": linear(self._own, layer).weight.detach() for layer in layers}
        rows = max(1, _LOGITS // (ids.shape[1] * int(checkpoint.config.vocab_size)))
        self._parts = list(zip(hidden.split(rows), ids.split(rows), strict=True))
        self._predicted = ids[:, 1:].numel()
        checkpoint.logits(hidden[:1, :1])  # reads norm and head, which transforms must not do

    @property
    def n(self) -> int:
        """How many weights there are."""
        return sum(W.numel() for W in self._weights.values())

    def flat(self, matrices: dict[str, torch.Tensor]) -> np.ndarray:
        """One matrix (out, in) for each layer, by its name, as a vector (N,)."""
        parts = [matrices[name.removesuffix(".weight")].reshape(-1) for name in self._weights]
        return torch.cat(parts).to(self._checkpoint.dtype).numpy()

    def gradient(self) -> np.ndarray:
        """The gradient g (N,), in nats per unit of a weight."""
        return self._products(np.zeros(self.n), full=True)[0]

    def hessian(self) -> LinearOperator:
        """H (N, N): symmetric, indefinite."""
        return self._operator(lambda v: self._products(v, full=True)[1])

    def gauss_newton(self) -> LinearOperator:
        """G (N, N): symmetric, positive semi-definite; the Fisher information of the mean token."""
        return self._operator(lambda v: self._products(v, full=False)[1])

    @torch.no_grad()
    def change(self, delta: np.ndarray) -> float:
        """L(W + delta) - L(W) in nats, as it is; (N,)."""
        moved = {name: self._weights[name] + V for name, V in self._matrices(delta).items()}
        return self._loss(moved) - self._loss(self._weights)

    def _loss(self, weights: Weights) -> float:
        total = 0.0
        for hidden, ids in self._parts:
            state = self._of_weights(hidden)(weights)
            for k in range(self._i + 1, self._checkpoint.n_blocks):
                state = self._of_states(k, hidden)(state)
            total += float(self._nll(ids)(state).double())
        return total

    def _products(self, v: np.ndarray, *, full: bool) -> tuple[np.ndarray, np.ndarray]:
        """The gradient and H v with `full`, else zeros and G v."""
        V = self._matrices(v)
        sums: Weights = {}
        with sdpa_kernel(SDPBackend.MATH):
            for hidden, ids in self._parts:
                for name, pair in self._swept(hidden, ids, V, full).items():
                    sums[name] = pair + sums.get(name, 0.0)
        g, product = torch.cat([sums[name].flatten(1) for name in self._weights], dim=1).numpy()
        return g, product

    def _swept(self, hidden: torch.Tensor, ids: torch.Tensor, V: Weights, full: bool) -> Weights:
        """For each weight g and the product (2, out, in), of these rows."""
        first, last = self._i + 1, self._checkpoint.n_blocks
        states: list[Any] = [jvp(self._of_weights(hidden), (self._weights,), (V,))]
        for k in range(first, last):
            states.append(jvp(self._of_states(k, hidden), *((x,) for x in states[-1])))
        h, dh = states.pop()
        c, dc = self._at_the_end(ids, h, dh, full)
        for k in reversed(range(first, last)):
            h, dh = states.pop()
            c, dc = _pulled(self._of_states(k, hidden), h, dh, c, dc, full)
        g, product = _pulled(self._of_weights(hidden), self._weights, V, c, dc, full)
        return {name: torch.stack([g[name], product[name]]) for name in V}

    def _at_the_end(self, ids: torch.Tensor, h: torch.Tensor, dh: torch.Tensor, full: bool) -> Any:
        """c_n and c'_n."""
        if full:
            return jvp(grad(self._nll(ids)), (h,), (dh,))
        moved: Any = jvp(self._logits, (h,), (dh,))
        z, dz = moved
        p = z.softmax(-1)
        curved = p * (dz - (p * dz).sum(-1, keepdim=True)) / self._predicted
        return torch.zeros_like(h), vjp(self._logits, h)[1](curved)[0]

    def _logits(self, h: torch.Tensor) -> torch.Tensor:
        """Those that predict a token of the row."""
        return self._checkpoint.logits(h[:, :-1])

    def _nll(self, ids: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """These rows' part of L as a function of the last block's output."""
        return lambda h: -self._logits(h).log_softmax(-1).gather(-1, ids[:, 1:, None]).sum() / self._predicted

    def _of_weights(self, hidden: torch.Tensor) -> Callable[[Weights], torch.Tensor]:
        """f_i as a function of the weights."""
        given = self._checkpoint.arguments(self._i, hidden)
        return lambda weights: functional_call(self._own, weights, (hidden,), given)

    def _of_states(self, k: int, hidden: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """f_k as a function of the states, whose shape is that of `hidden`."""
        block: nn.Module = self._block(k)
        given = self._checkpoint.arguments(k, hidden)
        return lambda h: block(h, **given)

    def _matrices(self, v: np.ndarray) -> Weights:
        """A vector (N,) as matrices by name; `ValueError` for another length."""
        if np.size(v) != self.n:
            raise ValueError(f"a vector of shape {np.shape(v)}, expected ({self.n},)")
        flat = torch.from_numpy(np.array(v).reshape(-1)).to(self._checkpoint.dtype)
        sizes = [W.numel() for W in self._weights.values()]
        parts: Iterator[tuple[str, torch.Tensor]] = zip(self._weights, flat.split(sizes), strict=True)
        return {name: part.reshape(self._weights[name].shape) for name, part in parts}

    def _operator(self, product: Callable[[np.ndarray], np.ndarray]) -> LinearOperator:
        dtype = np.dtype(str(self._checkpoint.dtype).removeprefix("torch."))
        return LinearOperator((self.n, self.n), matvec=product, rmatvec=product, dtype=dtype)


def _pulled(f: Callable[[Any], torch.Tensor], x: Any, dx: Any, c: torch.Tensor, dc: torch.Tensor, full: bool) -> Any:
    """J^T c and its derivative along the tangents; not `full`, x itself in its place, and J^T c' alone."""
    if full:
        return jvp(lambda y, cotangent: vjp(f, y)[1](cotangent)[0], (x, c), (dx, dc))
    return x, vjp(f, x)[1](dc)[0]
