import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from theory.sources import GaussianMixture, Laplace, Student, gaussian, quadrature, shannon_lower

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


STUDENT = Student(degrees=3, variance=2.0)


@pytest.mark.parametrize("source", [*SOURCES, STUDENT])
@pytest.mark.parametrize("x", [0.0, 0.3, 2.0])
def test_masses_and_moments_of_tails_agree_with_adaptive_integration(source, x):
    end = x * source.scale
    for power, found in enumerate((source.tail(end), source.tail_moment(end), source.tail_square(end))):
        above = quad(lambda x, k=power: x**k * source.density(x), end, np.inf, epsabs=1e-13, limit=200)[0]
        assert found == pytest.approx(above, rel=1e-7)


@pytest.mark.parametrize("source", [*SOURCES, STUDENT])
def test_nothing_is_left_far_out(source):
    assert source.tail(1e9 * source.reach) < 1e-20 and source.tail_moment(1e9 * source.reach) < 1e-12


def test_students_law_is_scipys():
    scipys = stats.t(3, scale=np.sqrt(2 / 3))
    x = np.linspace(-5, 5, 11)
    assert STUDENT.density(x) == pytest.approx(scipys.pdf(x))
    assert STUDENT.entropy_bits == pytest.approx(scipys.entropy() / np.log(2))
    assert scipys.var() == pytest.approx(2)
    assert 2 * STUDENT.tail(STUDENT.reach) == pytest.approx(np.exp(-32), rel=1e-6)
    assert Student(degrees=1e6).entropy_bits == pytest.approx(gaussian().entropy_bits, abs=1e-5)


@pytest.mark.parametrize("source", [*SOURCES, STUDENT])
def test_samples_have_the_sources_distribution(source):
    n = 40_000
    x = source.draw(np.random.default_rng(0), (n // 4, 4))
    assert x.shape == (n // 4, 4)
    for end in (0.2, 1.0, 2.5):
        p = float(2 * source.tail(end * source.scale))
        sigma = np.sqrt(p * (1 - p) / n)
        assert np.mean(np.abs(x) > end * source.scale) == pytest.approx(p, abs=4 * sigma)
    assert np.mean(x > 0) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(n))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Laplace(variance=0.0), "every variance must be positive"),
        (lambda: Student(degrees=2.0), "expected more than 2, below which there is no variance"),
        (lambda: Student(degrees=3, variance=-1.0), "every variance must be positive"),
        (lambda: gaussian(np.inf), "every variance must be positive"),
        (lambda: GaussianMixture(weights=(), variances=()), "there must be one"),
        (lambda: GaussianMixture(weights=(0.5, 0.4), variances=(1.0, 2.0)), "of sum 1"),
        (lambda: GaussianMixture(weights=(1.0,), variances=(1.0, 2.0)), "as many weights as variances"),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
