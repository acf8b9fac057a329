import numpy as np
import pytest
from synthetic import LAYERS, STAGES, coded_size, hash_of, measured, record, study_of

from reports.entropy import (
    Entropy,
    coded_marks,
    coding_verdict,
    equal_bits,
    gain,
    gain_verdict,
    group_rank,
    read_entropy,
    swept,
)
from reports.frontier import studies
from suite.store import Store, WeightShape


def entropy_of(*sizes, shapes=()):
    return Entropy(studies=(), sizes=sizes, shapes=shapes)


@pytest.fixture(scope="module")
def found(entropy_path):
    with Store(entropy_path, create=False) as store:
        return read_entropy(store, studies(store))


def test_stages_come_in_the_order_of_training(found):
    assert [m.label for m in found.models] == ["initial", "half", "tiny"]
    assert [m.name for m in found.models] == list(STAGES)


def test_namesakes_are_told_apart_by_their_hash():
    found = entropy_of(coded_size(), coded_size(model="other/tiny"), coded_size(model="tiny", model_sha256="b" * 64))
    assert sorted(m.label for m in found.models) == [f"tiny {h[:8]}" for h in (hash_of("tiny"),) * 2 + ("b" * 64,)]


def test_layers_are_added_up():
    rows = [coded_size(layer=layer, coder=coder, n_weights=n, n_bits=bits * n, beside_bits=n // 2, nmse=nmse)
            for layer, n, nmse in (("a", 100, 0.01), ("b", 300, 0.03))
            for coder, bits in (("fixed", 4.5), ("entropy", 3.5), ("ans", 4.0))]  # fmt: skip
    (total,) = entropy_of(*rows).totals
    assert (total.n_weights, total.beside_bits) == (400, 200)
    assert total.bpw("fixed") == 4.5 and total.bpw("ans") == 4.0 and np.isnan(total.bpw("gzip"))
    assert total.nmse == pytest.approx(0.025)
    assert total.share("ans") == pytest.approx(4 / 4.5) and gain(total) == pytest.approx(4.5 / 4)
    assert total.efficiency("ans") == pytest.approx(3.0 / 3.5)  # half a bit beside the codes in both
    assert total.trace.text == (f"model {hash_of('tiny')[:12]}", "1.0+abc", "cpu", "bitfrontier entropy tiny")


def test_a_coder_that_a_layer_lacks_is_left_out():
    rows = [coded_size(layer=layer, coder=c) for layer in "ab" for c in ("fixed", "entropy")]
    (total,) = entropy_of(*rows, coded_size(layer="a", coder="gzip")).totals
    assert set(total.n_bits) == {"fixed", "entropy"}
    assert entropy_of(coded_size(coder="entropy")).totals == ()  # nothing to compare with


def test_a_format_is_shown_in_the_recipe_that_most_coders_were_tried_on(found):
    shown = [(t.label, t.group) for t in found.standard if t.model.label == "tiny"]
    assert shown == [("fp32", ""), ("bf16", ""), ("fp8", "row"), ("rtn 8", "32"), ("rtn 4", "32"), ("rtn 3", "32")]
    assert {(t.label, t.group) for t in swept(found.totals)} == {("rtn 4", g) for g in ("32", "256", "row", "tensor")}


def test_groups_are_ordered_by_size():
    assert sorted(["tensor", "", "1024", "row", "32"], key=group_rank) == ["32", "1024", "row", "tensor", ""]


def test_a_gaussian_model_is_as_far_from_its_mixture_as_from_the_gaussian(found):
    limits = {m.label: found.limits[m].rates(0.01) for m in found.models}
    assert limits["initial"]["variance mixture"] == pytest.approx(limits["initial"]["Gaussian"], abs=0.02)
    assert limits["tiny"]["variance mixture"] == pytest.approx(limits["tiny"]["Laplace"], abs=0.03)
    for m in found.models:
        assert found.limits[m].known_variances(0.01) <= found.limits[m].rates(0.01)["variance mixture"] + 1e-6


def test_a_model_without_weights_has_no_limit():
    empty = WeightShape(model="tiny", model_sha256="a", layer="l", n_weights=0, rms=0.0, counts=np.zeros(1024, int))
    assert entropy_of(shapes=(empty,)).limits == {}


def gains(*values, bits=4.0):
    rows = [coded_size(bits=bits, group=group, recipe=group, coder=coder, n_bits=n)
            for group, value in zip(("32", "256", "tensor"), values, strict=False)
            for coder, n in (("fixed", 4096 * 4.0), ("entropy", 1.0), ("ans", 4096 * 4 / value))]  # fmt: skip
    return entropy_of(*rows).totals


def test_the_gain_verdict_follows_the_numbers():
    mixed = gain_verdict(gains(1.05, 1.35, 1.6))
    assert "from 1.05 (rtn 4 in groups of 32) to 1.60 (rtn 4 in whole tensors)" in mixed
    assert "holds in 2 of 3 cases, first at rtn 4 in groups of 256." in mixed
    assert gain_verdict(gains(1.05, 1.1)).endswith("claim N3, a gain of 1.3 to 1.5, is reached nowhere.")
    assert gain_verdict(gains(1.4, 1.5, bits=3.0)).startswith("claim N3 is open")


STEPS = "Recipe(weights=Target(Steps(bits=3)), coding=Ans())"


def against(kl, bpw_coded=3.5, method="ecsq", recipe=STEPS):
    fixed = [measured("tiny", "rtn", b, kl=kl_fixed, kl_se=0.0, bpw=float(b), bpw_coded=b - 0.5, nmse=None)
             for b, kl_fixed in ((2, 1.0), (3, 0.1), (4, 0.01))]  # fmt: skip
    return study_of(*fixed, record(method=method, recipe=recipe, bpw=3.9, bpw_coded=bpw_coded, kl=kl, kl_se=0.001))


def test_equal_bits_are_on_the_line_between_fixed_widths():
    ((mark, ratio),) = equal_bits(*coded_marks(against(0.02)))
    assert mark.point.method == "ecsq" and ratio == pytest.approx(0.02 / np.sqrt(0.1 * 0.01))
    assert equal_bits(*coded_marks(against(0.8, bpw_coded=1.9))) == []  # fewer bits than any fixed width: no telling
    coded, _ = coded_marks(against(0.02))
    ((_, ratio),) = equal_bits(coded, coded)  # fixed widths that are coded too have 3.5 bits at 0.01 nats
    assert ratio == pytest.approx(2)
    assert equal_bits(*coded_marks(against(0.02, bpw_coded=5.0))) == []  # no claim is made there


@pytest.mark.parametrize("kl, wins, clear", [(0.02, 1, 1), (0.0315, 1, 0), (0.05, 0, 0)])
def test_the_coding_verdict_follows_the_numbers(kl, wins, clear):
    text = coding_verdict(against(kl))
    assert f"ecsq have a lower KL than the front of fixed widths at equal bits in {wins} of 1 points" in text
    assert (
        f"by two standard errors in {clear} (" in text
        and "coded too, in 0 of 1 points" in text
        and text.count(".") >= 1
        and text.endswith(".")
    )


def test_without_an_entropy_coded_scalar_the_claim_is_open():
    text = coding_verdict(against(0.02, method="gptq", recipe="Recipe(weights=Target(Integer(bits=3)))"))
    assert text.startswith("claim N5 is open") and "coding saves 15% of the bits in the median" in text
    assert coding_verdict(study_of(record())).endswith("no record has both bit counts.")


def test_histograms_of_the_first_seed_are_shown(found):
    ((_, _), (tiny, shown)) = found.studies
    assert tiny.model == "tiny"
    per_point = {(s.record.method, s.record.bits): s.record.seed for s in shown}
    assert per_point["gptq", 3] == 0
    two = [s for s in shown if s.label.startswith("hqq 3")]
    assert [s.label for s in two] == ["hqq 3 · 0", "hqq 3 · 1"] and two[0].width == 3
    p = two[0].histogram.counts / two[0].histogram.counts.sum()
    assert two[0].entropy == pytest.approx(-(p * np.log2(p)).sum())


def test_a_store_without_entropy_has_nothing_to_say(store_path):
    with Store(store_path, create=False) as store:
        found = read_entropy(store, studies(store))
    assert not found.anything and found.models == () and found.totals == () and found.limits == {}
    assert len(LAYERS) == 6
