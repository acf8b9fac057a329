import json
import struct

import golden
import pytest
import torch

from suite.grids.trellis_codes import HYB_ENTRIES, half_plane_means, hyb, hyb_table, one_mad, three_inst, values_of
from suite.grids.viterbi import tail_biting

STATES = torch.arange(1 << 16)
SOME = [0, 1, 2, 255, 256, 4095, 31337, 65535, (1 << 20) - 1]


def half(bits):
    return struct.unpack("<e", struct.pack("<H", bits))[0]


def one_mad_plainly(state):
    x = (34038481 * state + 76625530) % 2**32
    return (sum(x.to_bytes(4, "little")) - 510) / 147.800537109375


def three_inst_plainly(state):
    x = (89226354 * state + 64248484) % 2**32
    x = (x & 0b10001111111111111000111111111111) ^ 0x3B603B60
    return half(x >> 16) + half(x & 0xFFFF)


@pytest.mark.parametrize("state", SOME)
def test_computed_codes_as_the_paper_has_them(state):
    """Alg. 1 and 2, in integers of Python and float16 of the struct module; their last rounding is that of the type."""
    wide = torch.tensor([state])
    assert one_mad(wide).item() == pytest.approx(one_mad_plainly(state), rel=2.0**-23)
    assert three_inst(wide).item() == pytest.approx(three_inst_plainly(state), rel=2.0**-11)


def test_what_the_release_has_at_16_bits():
    """Counted there: deviations and how many different values (Cornell-RelaxML/qtip@e90c6688)."""
    mad, inst = one_mad(STATES), three_inst(STATES)
    assert (mad.unique().numel(), inst.unique().numel()) == (908, 10598)
    assert float(mad.double().square().mean().sqrt()) == pytest.approx(1.0000883422090199, rel=1e-7)
    assert float(inst.double().square().mean().sqrt()) == pytest.approx(1.2437109244850626, rel=1e-7)


def test_hyb_reads_sign_and_index_from_the_hash():
    table = hyb_table()
    found = values_of("hyb", 16, 2)
    for state in [*SOME[:-1], 40000]:
        x = state * (state + 1)
        pair = table[(x >> 6) % HYB_ENTRIES]
        expected = (-pair[0] if x >> 15 & 1 else pair[0], pair[1])
        assert found[state].tolist() == [float(v) for v in expected]
    assert torch.equal(hyb(STATES, table.double()), found.double())


def test_the_tables_sign_is_free():
    """On the half plane of a positive first value; the sign bit makes the other half, so that all is even in it."""
    table, all_pairs = hyb_table(), values_of("hyb", 16, 2)
    assert (table[:, 0] > 0).all() and torch.equal(table, table.half().float())
    assert float(all_pairs.square().mean()) == pytest.approx(1 - 2.0**-4, rel=0.01)
    assert len(all_pairs.unique(dim=0)) > HYB_ENTRIES


@pytest.mark.slow
def test_the_stored_table_is_what_k_means_gives():
    """To the half unit of float16 below 4, unless a point on a boundary between two means goes the other way."""
    assert (hyb_table() - half_plane_means()).abs().max() < 0.01


def test_draws_are_independent_and_stay():
    first = values_of("gaussian", 12, 2)
    assert first.shape == (4096, 2) and torch.equal(first, first.half().float())
    # the first numbers of the legacy generator at seed 0, which numpy promises not to change
    assert first[0].tolist() == torch.tensor([1.764052345967664, 0.4001572083672233]).half().tolist()
    assert abs(float(first.mean())) < 3 / 8192**0.5 and abs(float(first.var()) - 1) < 3 * (2 / 8192) ** 0.5


@golden.needed
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_our_table_against_the_releases(bits):
    """On a Gaussian source: at every width no worse than k-means of the whole plane mirrored, which wastes half."""
    release = json.loads((golden.FOLDER / "qtip-hyb-table.json").read_text())["tlut"]
    x = torch.randn(96, 128, 2, generator=torch.Generator().manual_seed(0))
    errors = []
    for table in (hyb_table(), torch.tensor(release)):
        pairs = hyb(STATES, table)
        pairs = pairs / pairs.square().mean().sqrt()
        wanted = 0.95 * x
        errors.append((pairs[tail_biting(wanted, pairs, 2 * bits)] - wanted).square().sum((1, 2)))
    gap = (errors[0] - errors[1]) / errors[1].mean()
    assert float(gap.mean()) < 3 * float(gap.std()) / len(gap) ** 0.5
    assert bits == 2 or float(gap.mean()) < 0
