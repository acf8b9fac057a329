import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from theory.sources import GaussianMixture, Laplace, gaussian, quadrature, shannon_lower

MIXTURE = GaussianMixture(weights=(0.2, 0.6, 0.2), variances=(0.05, 0.7, 2.85))
SOURCES = [gaussian(), gaussian(9.0), Laplace(), Laplace(variance=0.01), MIXTURE]


@pytest.mark.parametrize("source", SOURCES)
def test_masses_moments_and_entropy_agree_with_adaptive_integration(source):
    x, mass = quadrature(source)
    assert mass.sum() == pytest.approx(1, abs=1e-12)
    assert mass @ x**2 == pytest.approx(source.variance, rel=1e-10)
    entropy = 2 * quad(lambda x: -(p := source.density(x)) * np.log2(p), 0, source.reach, limit=200)[0]
    assert source.entropy_bits == pytest.approx(entropy, abs=1e-9)


@pytest.mark.parametrize("source", SOURCES)
def test_narrow_panels_give_the_same_sums(source):
    x, mass = quadrature(source, source.scale / 7)
    assert mass @ x**2 == pytest.approx(source.variance, rel=1e-10)


@pytest.mark.parametrize("source", SOURCES)
def test_hardly_anything_lies_beyond_the_reach(source):
    mass = 2 * quad(source.density, source.reach, 2 * source.reach, epsabs=0)[0]
    assert 1e-15 < mass < 1e-13


def test_scipy_agrees():
    x = np.linspace(-5, 5, 11)
    assert Laplace(variance=3.0).density(x) == pytest.approx(stats.laplace(scale=np.sqrt(1.5)).pdf(x))
    assert Laplace(variance=3.0).entropy_bits == pytest.approx(stats.laplace(scale=np.sqrt(1.5)).entropy() / np.log(2))
    assert gaussian(3.0).density(x) == pytest.approx(stats.norm(scale=np.sqrt(3)).pdf(x))
    assert gaussian(3.0).entropy_bits == pytest.approx(stats.norm(scale=np.sqrt(3)).entropy() / np.log(2))


def test_shannons_bound_is_the_gaussians_limit_and_the_laplacians_entropy():
    rates = np.array([0.0, 1.0, 2.5])
    assert shannon_lower(gaussian(2.0), rates) == pytest.approx(2 * 4.0**-rates)
    assert shannon_lower(Laplace(), 0) == pytest.approx(np.e / np.pi)  # (2 e b)^2 / (2 pi e) at b^2 = 1/2


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Laplace(variance=0.0), "every variance must be positive"),
        (lambda: gaussian(np.inf), "every variance must be positive"),
        (lambda: GaussianMixture(weights=(), variances=()), "there must be one"),
        (lambda: GaussianMixture(weights=(0.5, 0.4), variances=(1.0, 2.0)), "of sum 1"),
        (lambda: GaussianMixture(weights=(1.0,), variances=(1.0, 2.0)), "as many weights as variances"),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
