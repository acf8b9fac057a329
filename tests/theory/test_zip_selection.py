import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.entropy import zip_selection as selection
from theory.entropy.coded_against_grouped import ratios


def texts(seed, n=40):
    """Half of them the same sentence with a number, half of them letters at random."""
    rng = np.random.default_rng(seed)
    same = [b"for i in range(10): print(i, %d)\n" % k * 6 for k in range(n // 2)]
    return same + [bytes(rng.integers(97, 123, 200).astype(np.uint8)) for _ in range(n - n // 2)]


@settings(max_examples=50)
@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5), st.binary(max_size=300))
def test_a_copied_state_compresses_to_the_same_size_as_everything_at_once(before, text):
    prefix = selection._Prefix()
    for part in before:
        prefix.add(part)
    joined = b"".join(before) + text
    assert prefix.ratio_with(text) == len(joined) / len(zlib.compress(joined, 9))
    assert prefix.ratio_with(text) == prefix.ratio_with(text)


def test_rows_that_compress_less_come_first():
    chosen = selection.selected(texts(0), 15, first=40, second=12, third=5)
    assert len(set(chosen)) == 15 and min(chosen) >= 20


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 10))
def test_as_many_as_wanted_are_selected_and_none_twice(wanted, first, second, third):
    chosen = selection.selected(texts(1), wanted, first, second, third)
    assert len(chosen) == wanted == len(set(chosen))


def test_copies_are_left_for_the_end():
    rng = np.random.default_rng(0)
    own = [bytes(rng.integers(97, 110, 300).astype(np.uint8)) for _ in range(20)]
    pool = own[:1] * 20 + own[1:]
    chosen = selection.selected(pool, 19, first=39, second=39, third=10)
    assert sum(i < 20 for i in chosen) <= 2
    with pytest.raises(ValueError, match="40 of 39 texts"):
        selection.selected(pool, 40)


def test_corpora_have_the_fillers_they_say():
    rows = np.arange(160 * 4).reshape(160, 4)
    plain, none = selection.corpus("plain", rows, 1000, np.random.default_rng(0))
    assert not none.any() and {tuple(row) for row in plain} == {tuple(row) for row in rows}
    made, filler = selection.corpus("redundant", rows, 1000, np.random.default_rng(0))
    assert filler.mean() == 0.5 and len({tuple(row) for row in made[filler]}) == 5
    made, filler = selection.corpus("random", rows, 1000, np.random.default_rng(0))
    assert filler.mean() == 0.25 and made[filler].max() < 1000
    assert {tuple(row) for row in made[~filler]} <= {tuple(row) for row in rows}
    with pytest.raises(ValueError, match="expected one of plain, redundant, random"):
        selection.corpus("other", rows, 1000, np.random.default_rng(0))


def test_ratios_are_raw_over_compressed():
    assert selection.ratio_of([b"a" * 1000]) == 1000 / len(zlib.compress(b"a" * 1000, 9))


def test_entropy_coded_steps_win_by_what_theory_gives_them_on_a_gaussian():
    found = ratios("Gaussian", 4, "", 0)
    bits, ratio = found["Lloyd-Max, groups of 128"]
    assert bits == pytest.approx(4 + 16 / 128)
    # 2 pi e / 12 * 4^-R over the error of 16 levels; groups of 128 fit their own spread, which helps them a little
    assert ratio == pytest.approx(1.4233 * 4**-bits / 9.501e-3, rel=0.05)
    assert all(ratio < 1 for _, ratio in found.values())
