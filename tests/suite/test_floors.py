"""No method, at all the bits it stores, leaves less of a Gaussian than Shannon's distortion-rate function allows.

Weights are independent and of variance 1. Q is one of at most 2^n matrices, n the bits stored (or sent: codes of
several lengths are decodable one after the other), so that the mean of |W - Q|^2 / size is at least 4^-R at
R = n / size bits per weight (Shannon 1959), whatever a method does and at any size of matrix. With correlated inputs
the same holds of E H E^T for a decoder that is told H: in the coordinates of its eigenvectors the weights are still
independent, and what is left is at least reverse water-filling over its eigenvalues.

Every method joins by its line in METHODS. A failure means that bits are not charged, or that an error is not counted.
"""

import re
from dataclasses import dataclass

import pytest
import torch

from suite.grids import Integer
from suite.methods import METHODS
from suite.quantize import quantize_matrix
from theory.rate_distortion import gaussian_distortion, reverse_waterfilling

# why a method cannot be asked for one matrix at this width; anything else that is raised is a failure
WHOLE_MODEL = r"takes a whole model|the recipe does not quantize weights"
NOT_AT_THIS_WIDTH = r"1-bit integers need half-integer levels|bits per weight"


@dataclass(frozen=True)
class Source:
    """Independent Gaussian weights (rows, columns), `count` times, and their inputs' Gram matrix."""

    name: str
    count: int
    rows: int
    columns: int

    def __str__(self):
        return f"{self.name}-{self.count}x{self.rows}x{self.columns}"

    @property
    def spectrum(self):
        """The eigenvalues (columns,) of H: all 1, or 1 / k."""
        k = torch.arange(1, self.columns + 1, dtype=torch.float64)
        return torch.ones_like(k) if self.name == "white" else 1 / k

    @property
    def root(self):
        """The symmetric root of H (columns, columns); as inputs, times the root of their number, it has H exactly."""
        if self.name == "white":
            return torch.eye(self.columns, dtype=torch.float64)
        generator = torch.Generator().manual_seed(7)
        basis = torch.linalg.qr(torch.randn(self.columns, self.columns, generator=generator, dtype=torch.float64))[0]
        return basis * self.spectrum.sqrt() @ basis.T

    def weights(self, seed):
        return torch.randn(self.rows, self.columns, generator=torch.Generator().manual_seed(seed))

    def floor(self, rate):
        """The least mean error, relative to the trace of H, at `rate` bits per weight."""
        if self.name == "white":
            return float(gaussian_distortion(rate))
        return float(reverse_waterfilling(self.spectrum.numpy(), rate) / self.spectrum.sum())

    def errors(self, W, Q):
        """e H e^T / tr H of every row e of W - Q: 1 on average for Q = 0."""
        return ((W.double() - Q.double()) @ self.root).square().sum(1) / float(self.spectrum.sum())


def is_below(errors, floor):
    """Whether the mean of rows' errors lies below the floor by more than 4 standard errors."""
    return float(errors.mean()) < floor - 4 * float(errors.std()) / len(errors) ** 0.5


WHITE, CORRELATED = Source("white", 2, 32, 256), Source("correlated", 2, 32, 256)
LARGE = [Source("white", 8, 64, 256), Source("correlated", 8, 64, 256)]


def cases():
    """Every method and width on every source; the larger sources and wide codes of correlated inputs are slow."""
    for source in (WHITE, CORRELATED, *LARGE):
        for method in METHODS:
            for bits in method.bits:
                slow = source in LARGE or (source is CORRELATED and bits > 4 and not method.fixed)
                marks = pytest.mark.slow if slow else ()
                yield pytest.param(source, method, bits, id=f"{source}-{method.name}-{bits}", marks=marks)


@pytest.mark.parametrize(("source", "method", "bits"), list(cases()))
def test_no_method_is_better_than_the_source_allows(source, method, bits):
    X = source.root * source.columns**0.5
    errors, rates = [], []
    for seed in range(source.count):
        W = source.weights(seed)
        try:
            q = quantize_matrix(W, method=method.name, bits=None if method.fixed else bits, X=X, seed=seed)
        except ValueError as error:
            if not re.search(f"{WHOLE_MODEL}|{NOT_AT_THIS_WIDTH}", str(error)):
                raise
            pytest.skip(str(error))
        assert len(q.to_bytes()) == -(-q.n_bits // 8)
        errors.append(source.errors(W, q.dequantize()))
        rates.append(q.n_bits / W.numel())
    rate = sum(rates) / len(rates)  # the floor is convex in it: what is below the floor at the mean rate is too good
    assert not is_below(torch.cat(errors), source.floor(rate))


def test_a_method_is_skipped_only_where_it_takes_a_whole_model_or_not_this_width():
    """At some width every method of single matrices is measured."""
    W, X = Source("white", 1, 32, 256).weights(0), torch.eye(256, dtype=torch.float64)
    unmeasured = set()
    for method in METHODS:
        try:
            bits = None if method.fixed else 4 if 4 in method.bits else method.bits[-1]
            quantize_matrix(W, method=method.name, bits=bits, X=X)
        except ValueError as error:
            assert re.search(WHOLE_MODEL, str(error)), (method.name, str(error))
            unmeasured.add(method.name)
    whole = {"quarot", "spinquant", "expansion", "duquant", "kivi", "kvquant"}
    assert unmeasured == whole | {method.name for method in METHODS if method.needs == "training"}


@pytest.mark.parametrize("source", [WHITE, CORRELATED], ids=str)
def test_a_method_that_does_not_charge_its_scales_is_caught(source):
    """A scale and a sign for every weight: nothing is left, and 1 bit is said to be stored."""
    errors, charged = [], 0
    for seed in range(source.count):
        W = source.weights(seed)
        fitted = Integer(bits=1, group=1, convention="half-integer").fit(W)
        errors.append(source.errors(W, fitted.decode32(fitted.nearest(W))))
        charged = fitted.n_bits / W.numel()
    assert is_below(torch.cat(errors), source.floor(1.0)) and not is_below(torch.cat(errors), source.floor(charged))


@pytest.mark.parametrize("source", [WHITE, CORRELATED], ids=str)
def test_the_bits_that_billm_publishes_are_caught(source):
    """1.2 to 1.3 bits are published, 3.0 stored: no code at all of the former leaves so little."""
    errors, published, stored = [], 0.0, 0.0
    for seed in range(source.count):
        W = source.weights(seed)
        q = quantize_matrix(W, method="billm", X=source.root * source.columns**0.5)
        errors.append(source.errors(W, q.dequantize()))
        published, stored = q.grid.published_bits, q.n_bits / W.numel()
    assert published < 1.35 and stored > 3
    assert is_below(torch.cat(errors), source.floor(published)) and not is_below(
        torch.cat(errors), source.floor(stored)
    )


@pytest.mark.parametrize("source", [WHITE, CORRELATED], ids=str)
@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0, 4.0])
def test_the_check_finds_what_is_two_percent_too_good_and_lets_the_floor_itself_pass(source, rate):
    """Shannon's own channel, Q = W + noise shrunk, reaches the floor; a fiftieth less does not."""
    basis, spectrum = torch.linalg.eigh(source.root)[1], torch.linalg.eigvalsh(source.root).square()
    lowest, highest = 0.0, float(spectrum.max())
    for _ in range(200):  # the water level of this rate
        level = (lowest + highest) / 2
        too_low = float((spectrum / level).log2().clamp(min=0).mean() / 2) > rate
        lowest, highest = (level, highest) if too_low else (lowest, level)
    kept = (1 - level / spectrum).clamp(min=0)  # of every component's variance
    errors = []
    for seed in range(64):
        W = source.weights(seed).double()
        noise = torch.randn(W.shape, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)
        Q = (W @ basis * kept + noise * (kept * (1 - kept)).sqrt()) @ basis.T
        errors.append(source.errors(W, Q))
    found = torch.cat(errors)
    assert not is_below(found, source.floor(rate))
    assert is_below(0.98 * found, source.floor(rate))
