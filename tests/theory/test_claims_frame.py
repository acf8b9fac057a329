import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from theory.claims.frame import CONFIDENCE, Claim, above, below, decide, estimate

CLAIM = Claim(id="X1", group="made up", kind="mechanism", sentence="a is large and b is small.",
              measure=lambda setting: {}, rule=(above("a", 1.0), below("b", 0.5)))  # fmt: skip
HIGH, LOW, WIDE = [2.0, 2.0, 2.0], [0.1, 0.1, 0.1], [-3.0, 0.8, 4.0]


def found(a, b):
    return {"a": estimate(a), "b": estimate(b)}


@pytest.mark.parametrize(("a", "b", "every", "cases"), [
    (HIGH, LOW, "confirmed", "confirmed"),
    (LOW, HIGH, "refuted", "refuted"),
    (HIGH, HIGH, "refuted", "conditional"),
    (HIGH, WIDE, "undecided", "undecided"),
    (LOW, WIDE, "refuted", "undecided"),
    (WIDE, WIDE, "undecided", "undecided"),
    ([math.nan] * 3, LOW, "undecided", "undecided"),
])  # fmt: skip
def test_verdicts_follow_from_the_answers(a, b, every, cases):
    assert decide(CLAIM, found(a, b)).verdict == every
    assert decide(replace(CLAIM, takes="cases"), found(a, b)).verdict == cases


def test_a_condition_names_what_holds_what_fails_and_what_is_open():
    claim = replace(CLAIM, takes="cases", rule=(*CLAIM.rule, above("c", 0.0)), scope="at this size")
    said = decide(claim, found(HIGH, HIGH) | {"c": estimate(WIDE)}).condition
    assert said == "holds: a > 1; fails: b < 0.5; open: c > 0; at this size"
    assert claim.rule_text == "a > 1; each for itself: b < 0.5; each for itself: c > 0"


def test_a_number_on_the_margin_decides_nothing():
    assert above("a", 1.0).answer(estimate([1.0, 1.0])) is None is below("a", 1.0).answer(estimate([1.0, 1.0]))


def test_one_seed_decides_nothing():
    assert decide(CLAIM, found([1e9], [-1e9])).verdict == "undecided"


def test_intervals_cover_as_often_as_they_say():
    rng, n, trials, confidence = np.random.default_rng(0), 4, 4000, 0.9
    covered = 0
    for values in rng.normal(3.0, 2.0, size=(trials, n)):
        ends = estimate(values.tolist(), confidence)
        covered += ends.low < 3.0 < ends.high
    assert abs(covered - confidence * trials) < 4 * math.sqrt(trials * confidence * (1 - confidence))


def test_an_interval_is_students():
    values = [0.3, 1.7, 0.9, -2.0]
    ends = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    assert (estimate(values).low, estimate(values).high) == pytest.approx((ends.low, ends.high), rel=1e-12)


@pytest.mark.parametrize("changed", [{"rule": ()}, {"seeds": 2}])
def test_a_claim_has_a_rule_and_three_seeds(changed):
    with pytest.raises(ValueError, match="claim X1"):
        replace(CLAIM, **changed)
