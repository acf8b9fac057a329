"""Element formats: every code against other projects' tables, and rounding at ties, edges and beyond."""

import math

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from suite.grids.elements import (
    BINARY,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    ELEMENTS,
    FLOAT16,
    INT8,
    NF4,
    SEQ3,
    SEQ4,
    TERNARY,
    UNBALANCED,
    FloatFormat,
    boundaries,
)  # fmt: skip
from suite.grids.lloyd_max import GaussianTable

TYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e3m2": ml_dtypes.float6_e3m2fn,
         "e2m3": ml_dtypes.float6_e2m3fn, "e2m1": ml_dtypes.float4_e2m1fn, "float16": np.float16}  # fmt: skip
FORMATS = {"e4m3": gfloat.formats.format_info_ocp_e4m3, "e5m2": gfloat.formats.format_info_ocp_e5m2,
           "e3m2": gfloat.formats.format_info_ocp_e3m2, "e2m3": gfloat.formats.format_info_ocp_e2m3,
           "e2m1": gfloat.formats.format_info_ocp_e2m1, "float16": gfloat.formats.format_info_binary16,
           "int8": gfloat.formats.format_info_ocp_int8}  # fmt: skip
FLOATS = [E4M3, E5M2, E3M2, E2M3, E2M1, FLOAT16]
TABLES = [*(e for e in ELEMENTS.values() if not isinstance(e, FloatFormat) and e is not INT8),
          *(GaussianTable(bits=bits).table() for bits in range(1, 9))]  # fmt: skip

DYADIC = (*FLOATS, INT8, TERNARY, BINARY, SEQ4, UNBALANCED)  # whose midpoints are exact

floats = pytest.mark.parametrize("element", FLOATS, ids=lambda e: e.name)
tables = pytest.mark.parametrize("element", TABLES, ids=lambda e: f"{e.name}-{len(e.levels)}")
everything = pytest.mark.parametrize("element", [*FLOATS, INT8, *TABLES], ids=lambda e: f"{e.name}-{len(e.levels)}")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def patterns(element):
    """All codes, as the other project reads them."""
    kind = np.uint8 if element.bits <= 8 else np.uint16
    return np.arange(2**element.bits).astype(kind).view(TYPES[element.name])


def interesting(element, dtype):
    """All levels, all midpoints between them, their neighbors in `dtype`, and numbers of all sizes."""
    levels = torch.tensor(sorted({x for x in element.levels if math.isfinite(x)}), dtype=torch.float64)
    middle = (levels[1:] + levels[:-1]) / 2
    exact = torch.cat([levels, middle, torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-42])]).to(dtype)
    far = torch.full_like(exact, math.inf)
    random = torch.randn(4096, generator=torch.Generator().manual_seed(0), dtype=dtype)
    sizes = torch.exp2(torch.linspace(-30, 20, 4096, dtype=dtype))
    return torch.cat([exact, exact.nextafter(far), exact.nextafter(-far), random * sizes, random])


@floats
def test_every_code_of_a_float_format_is_that_of_ml_dtypes(element):
    assert np.array_equal(patterns(element).astype(np.float64), np.array(element.levels), equal_nan=True)
    negative_zero = element.levels[2 ** (element.bits - 1)]
    assert negative_zero == 0 and math.copysign(1, negative_zero) == -1


@pytest.mark.parametrize("element", [*FLOATS, INT8], ids=lambda e: e.name)
def test_every_code_is_that_of_gfloat(element):
    info = FORMATS[element.name]
    assert info.bits == element.bits
    for code in range(0, 2**element.bits, max(1, 2**element.bits // 4099)):
        expected, level = gfloat.decode_float(info, code).fval, element.levels[code]
        assert level == expected or (math.isnan(level) and math.isnan(expected))


@floats
def test_casts_are_those_of_ml_dtypes_where_nothing_saturates(element):  # which rounds float64 twice
    x = torch.cat([interesting(element, torch.float32), torch.tensor([math.inf, -math.inf])])
    if element.special != "finite":
        x = torch.cat([x, torch.tensor([math.nan])])
    with np.errstate(over="ignore"):
        expected = x.numpy().astype(TYPES[element.name])
    kind = np.uint8 if element.bits <= 8 else np.uint16
    codes = element.encode(x, saturate=False)
    same = torch.from_numpy(expected.view(kind).astype(np.int32)) == codes.int()
    assert same[: -1 if element.special != "finite" else None].all()
    if element.special != "finite":
        assert math.isnan(element.levels[int(codes[-1])])


@floats
@dtypes
def test_the_fast_path_agrees_with_gfloat_where_values_saturate(element, dtype):
    x = interesting(element, dtype)
    x = torch.cat([x[:: max(1, len(x) // 1000)], torch.tensor([math.inf, -math.inf, 1e30, -1e30], dtype=dtype)])
    info = FORMATS[element.name]
    for value, code in zip(x.tolist(), element.encode(x).tolist(), strict=True):
        expected = gfloat.round_float(info, value, gfloat.RoundMode.TiesToEven, sat=True)
        level = element.levels[code]
        assert level == expected or (math.isinf(value) and level == math.copysign(element.reach, value))
        assert math.copysign(1, level) == math.copysign(1, value)


@pytest.mark.parametrize("element", [*FLOATS[:-1], INT8, *TABLES], ids=lambda e: f"{e.name}-{len(e.levels)}")
@dtypes
def test_encoding_takes_the_nearest_level_and_of_two_the_even_one(element, dtype):
    x = interesting(element, dtype).double()
    x = x[x.abs() < 1e6]
    levels = torch.tensor([v if math.isfinite(v) and v >= element.lowest else 1e300 for v in element.levels],
                          dtype=torch.float64)  # fmt: skip
    codes = element.encode(x.to(dtype)).long()
    for part, chosen in zip(x.split(512), codes.split(512), strict=True):
        distance = (part[:, None] - levels).abs()
        least, rounding = distance.amin(1), 2.0**-52 * part.abs().clamp(min=element.reach)
        assert ((part - levels[chosen]).abs() <= least + rounding).all()
        if element not in DYADIC:
            continue
        ties = ((distance == least[:, None]).sum(1) > 1) & ((part == 0) | (part.abs() > 1e-20))
        away = levels[chosen] != 0  # the two zeros tie with each other
        odd = chosen % 2 == 1
        assert not (ties & away & odd & (part != levels[chosen])).any()


@everything
def test_every_level_is_its_own_nearest(element):
    x = torch.tensor([v for v in element.levels if math.isfinite(v) and v >= element.lowest], dtype=torch.float64)
    assert torch.equal(torch.tensor(element.levels, dtype=torch.float64)[element.encode(x).long()], x)


@everything
@given(values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8))
def test_both_types_and_any_shape_give_the_same_codes(element, values):
    x = torch.tensor(values, dtype=torch.float32)
    codes = element.encode(x)
    assert codes.dtype == (torch.uint8 if element.bits <= 8 else torch.int32)
    assert torch.equal(codes, element.encode(x.double()))
    assert torch.equal(codes, element.encode(x.reshape(1, -1, 1)).reshape(-1))


@pytest.mark.parametrize("element", [*FLOATS[2:5], INT8, *TABLES], ids=lambda e: f"{e.name}-{len(e.levels)}")
def test_nan_is_refused_where_it_has_no_code(element):
    with pytest.raises(ValueError, match=f"NaN has no code in {element.name}"):
        element.encode(torch.tensor([1.0, math.nan]))


@pytest.mark.parametrize("element", [E4M3, E5M2, FLOAT16], ids=lambda e: e.name)
@dtypes
def test_nan_stays_nan_where_there_is_one(element, dtype):
    codes = element.encode(torch.tensor([1.0, math.nan], dtype=dtype)).tolist()
    assert element.levels[codes[0]] == 1 and math.isnan(element.levels[codes[1]])


@pytest.mark.parametrize("element", FLOATS, ids=lambda e: e.name)
def test_beyond_the_largest_number(element):
    x = torch.tensor([math.inf, -math.inf, 1e37], dtype=torch.float32)
    assert [element.levels[c] for c in element.encode(x).tolist()] == [element.reach, -element.reach, element.reach]
    beyond = [element.levels[c] for c in element.encode(x, saturate=False).tolist()]
    if element.special == "ieee":
        assert beyond == [math.inf, -math.inf, math.inf]
    elif element.special == "nan":
        assert all(map(math.isnan, beyond))
    else:
        assert beyond == [element.reach, -element.reach, element.reach]


def test_the_most_negative_integer_is_never_chosen():
    assert INT8.levels[128] == -2.0
    assert INT8.levels[int(INT8.encode(torch.tensor([-5.0]))[0])] == -127 / 64


def test_largest_numbers_are_the_specification_s():
    assert [e.reach for e in (E4M3, E5M2, E3M2, E2M3, E2M1, INT8)] == [448, 57344, 28, 7.5, 6, 127 / 64]


def test_tables_of_the_papers():
    assert TERNARY.levels == (-1, 0, 1) and BINARY.levels == (-1, 1) and UNBALANCED.levels == (-2, -1, 0, 1)
    w = torch.linspace(-1.2, 1.2, 1001, dtype=torch.float64)  # alpha = 1
    clipped = w.clamp(-0.99, 0.99)
    four = ((clipped * 2 - 0.5).round() + 0.5) / 2
    assert torch.equal(torch.tensor(SEQ4.levels, dtype=torch.float64)[SEQ4.encode(w).long()], four)
    three = (clipped * 1.5).round() / 1.5
    assert torch.equal(torch.tensor(SEQ3.levels, dtype=torch.float64)[SEQ3.encode(w).long()], three)


def test_nf4_is_made_of_gaussian_quantiles():
    from scipy.stats import norm

    offset = ((1 - 1 / 30) + (1 - 1 / 32)) / 2
    made = [*-norm.ppf(np.linspace(offset, 0.5, 8)[:-1]), 0.0, *norm.ppf(np.linspace(offset, 0.5, 9)[:-1])[::-1]]
    assert np.abs(np.array(made) / max(made) - np.array(NF4.levels)).max() < 2e-7  # the literals were made in float32


def test_n2f3_is_made_of_gaussian_quantiles():
    """NF4's construction with half a step less at 7 and at 8 levels; the release's literals, made in float32."""
    from scipy.stats import norm

    offset = ((1 - 1 / 14) + (1 - 1 / 16)) / 2
    made = [*-norm.ppf(np.linspace(offset, 0.5, 4)[:-1]), 0.0, *norm.ppf(np.linspace(offset, 0.5, 5)[:-1])[::-1]]
    assert np.abs(np.array(made) / max(made) - np.array(ELEMENTS["n2f3"].levels)).max() < 2e-7


@tables
def test_boundaries_are_the_last_numbers_that_round_down(element):
    bounds = boundaries(element.levels, torch.float32)
    after = bounds.nextafter(torch.full_like(bounds, math.inf))
    assert torch.equal(element.encode(bounds).long(), torch.arange(len(bounds)))
    assert torch.equal(element.encode(after).long(), torch.arange(len(bounds)) + 1)


@everything
@dtypes
def test_rounding_gives_the_levels_of_the_codes(element, dtype):
    x = interesting(element, dtype)
    levels = torch.tensor(element.levels, dtype=dtype)
    assert torch.equal(element.round(x), levels[element.encode(x).to(torch.int64)])
