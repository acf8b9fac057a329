"""Claims about error bounds, E1 to E9, and what decides them: instances that follow from the seed, no model."""

from collections.abc import Mapping

import numpy as np

from theory.claims.frame import Claim, above, below
from theory.experiment import Setting

GROUP = "Error bounds"
_STEP, _N = 0.25, 32
_EXACT = 1e-9
_DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of what feeds back, over the mean of the diagonal


def _grams(rng: np.random.Generator, draws: int) -> list[np.ndarray]:
    from theory.bounds.instances import power_law

    return [power_law(_N, float(rng.uniform(0, 2)), rng) for _ in range(draws)]


def identity(setting: Setting) -> Mapping[str, float]:
    """E1: the identity's relative deviation, and the largest share of each bound that any row reaches."""
    from theory.bounds.instances import adversarial, dispersed, rounded
    from theory.bounds.pivots import factored, targets_missed
    from theory.bounds.zhang_2025_optq import (
        NEAREST_UPPER,
        STOCHASTIC_UPPER,
        attaining,
        error_rows,
        squared_error,
    )

    rng, off = np.random.default_rng(setting.seed), 0.0
    worst, mean = {False: 0.0, True: 0.0}, {False: 0.0, True: 0.0}
    grams = _grams(rng, max(4, round(20 * setting.effort)))
    for H in grams:
        found = factored(H)
        hard = np.stack([attaining(found, _STEP, rng) for _ in range(2)])
        W = np.concatenate([dispersed(24, _N, _STEP, rng), adversarial(_N, _STEP, rng), hard])
        for stochastic, constant in ((False, NEAREST_UPPER), (True, STOCHASTIC_UPPER)):
            E = W - rounded(W, H, _STEP, stochastic=stochastic, seed=setting.seed)
            error = error_rows(E, H)
            told = np.square(targets_missed(E, found)) @ found.by_channel
            off = max(off, float(np.abs(error - told).max() / error.max()))
            share = error / squared_error(constant, H, _STEP)
            worst[stochastic] = max(worst[stochastic], float(share.max()))
            mean[stochastic] += float(share[:24].mean()) / len(grams)
    return {"deviation from the identity": off, "largest share of the bound, nearest": worst[False],
            "largest share of the bound, stochastic": worst[True], "mean share of the bound, nearest": mean[False],
            "mean share of the bound, stochastic": mean[True]}  # fmt: skip


def sup_norm(setting: Setting) -> Mapping[str, float]:
    """E2: stochastic over nearest, of what is guaranteed and of the median, of random and of adversarial weights."""
    from theory.bounds.instances import rounded
    from theory.bounds.zhang_2025_supnorm import alike, nearest_upper, responses, stochastic_upper

    rng, n, tokens, damping = np.random.default_rng(setting.seed), 128, 64, 1e-4
    found: dict[str, float] = {}
    for kind in ("random", "adversarial"):
        X = rng.standard_normal((tokens, n)) if kind == "random" else alike(tokens, n, rng)
        H = X.T @ X / tokens
        W = _STEP * rng.uniform(-8, 8, (64, n)) if kind == "random" else np.full((64, n), 0.49 * _STEP)
        for how, gram in (("with feedback", H), ("without", None)):
            V = responses(X, feedback=gram is not None, damping=damping)
            guaranteed = stochastic_upper(V, _STEP, 0.05) / nearest_upper(V, _STEP)
            nearest, drawn = (
                float(np.median(np.abs((W - rounded(W, gram, _STEP, damping=damping, stochastic=stochastic,
                                                    seed=setting.seed)) @ X.T).max(1)))
                for stochastic in (False, True)
            )  # fmt: skip
            found |= {f"guaranteed, {kind}, {how}": guaranteed, f"typical, {kind}, {how}": drawn / nearest}
    return found


def order(setting: Setting) -> Mapping[str, float]:
    """E3: the sum of pivots in decreasing order over other orders', norms alike and spread."""
    from theory.bounds.zhang_2025_order import pivot_sum, unequal

    rng, found = np.random.default_rng(setting.seed), dict[str, float]()
    for name, spread in (("alike", 0.0), ("spread", 2.0)):
        grams = [unequal(64, spread, rng) for _ in range(max(4, round(8 * setting.effort)))]
        sums = {how: sum(pivot_sum(H, how) for H in grams) for how in ("given", "decreasing", "pivot")}  # type: ignore[arg-type]
        found |= {f"decreasing over given, norms {name}": sums["decreasing"] / sums["given"],
                  f"decreasing over smallest pivot last, norms {name}": sums["decreasing"] / sums["pivot"]}  # fmt: skip
    return found


def babai(setting: Setting) -> Mapping[str, float]:
    """E4: the least share of codes that three algorithms have in common with the suite's error feedback."""
    from theory.bounds import chen_2025_babai as algorithms
    from theory.bounds.instances import rounded

    rng, steps = np.random.default_rng(setting.seed), np.full(_N, _STEP)
    same: dict[str, list[float]] = {"gptq": [], "ldlq": [], "babai": []}
    for H in _grams(rng, max(4, round(24 * setting.effort))):
        W = _STEP * rng.uniform(-8, 8, (1, _N))
        codes = np.rint(rounded(W, H, _STEP)[0] / _STEP)
        for name, shares in same.items():
            shares.append(float((getattr(algorithms, name)(W[0], H, steps) == codes).mean()))
    return {f"share of equal codes, {name}": float(np.mean(shares)) for name, shares in same.items()}


def losses(setting: Setting) -> Mapping[str, float]:
    """E5: how often error feedback has the larger error than rounding to nearest, a bad case, and a rival in the mean.

    The rivals feed back by H + damping mean(diag H) I. Which damping is best is found on half of the rows, and its
    error set against undamped feedback's on the other half.
    """
    from theory.bounds.chee_2023_incoherence import bad_case, clipped_rows, haar, outliers
    from theory.bounds.instances import rounded
    from theory.bounds.zhang_2025_optq import error_rows

    rng, lost, clipped = np.random.default_rng(setting.seed), [], []
    errors: dict[float, list[np.ndarray]] = {damping: [] for damping in (0.0, *_DAMPINGS)}
    for _ in range(max(4, round(8 * setting.effort))):
        turn = haar(_N, rng)
        H = turn @ outliers(_N, 0.5) @ turn.T
        W = rng.standard_normal((64, _N))
        fed, alone = (error_rows(W - rounded(W, gram, _STEP), H) for gram in (H, None))
        lost.append(float((fed > alone).mean()))
        for damping, found in errors.items():
            rival = H + damping * np.diag(H).mean() * np.eye(_N)
            found.append(error_rows(W - clipped_rows(W, rival, 2), H))
        alone = error_rows(W - clipped_rows(W, None, 2), H)
        clipped.append(float((errors[0.0][-1] > alone).mean()))
    halves = {damping: np.stack(found).reshape(-1, 2).mean(0) for damping, found in errors.items()}
    best = min(_DAMPINGS, key=lambda damping: halves[damping][0])
    w, H = bad_case(256, top=15.0)
    bad = [float(error_rows(w - clipped_rows(w[None], gram, 4, "asymmetric"), H)[0]) for gram in (H, None)]
    return {"error over nearest's, 4 bits with ends, a bad case": bad[0] / bad[1],
            "share of rows lost": float(np.mean(lost)), "share of rows lost, 2 bits with ends": float(np.mean(clipped)),
            "mean error of the best damped feedback over undamped, 2 bits with ends":
            float(halves[best][1] / halves[0.0][1]), "its damping": best}  # fmt: skip


def entropy_gap(setting: Setting) -> Mapping[str, float]:
    """E6: measured less predicted bits above the limit, at about four bits and at one and a half, spectrum k^-1."""
    from theory.bounds.lifar_2026_watersic import gaps

    found, rows = dict[str, float](), round(4096 * setting.effort)
    for name, step in (("4 bits", 0.25), ("1.5 bits", 1.5)):
        for way, (rate, measured, predicted) in gaps(1.0, step, rows, setting.seed).items():
            if way in ("GPTQ", "WaterSIC"):
                found |= {f"{way}, near {name}: off by": abs(measured - predicted), f"{way}, near {name}: bits": rate}
    return found


def expansion(setting: Setting) -> Mapping[str, float]:
    """E7: shares of the error's energy over chance, and errors at equal true bits, channels a quarter more."""
    from theory.expansion.equal_bits import comparison, synthetic
    from theory.expansion.franco_2025_null_space import shares

    null, stiff, before = (shares(setting.seed, ratio, 1e-6, stiff=is_stiff)
                           for ratio, is_stiff in ((1.5, False), (1.5, True), (1.0, True)))  # fmt: skip
    bits = comparison(*synthetic(setting.seed), "entropy", setting.seed)
    ratios = [error for (way, _), (_, error) in bits.items() if "times" in way and "predicted" not in way]
    return {"null space over chance, feedback": null["error feedback"] / null["chance"],
            "null space over chance, nearest": null["to nearest"] / null["chance"],
            "stiffest directions, expanded over plain": (stiff["error feedback"] / stiff["chance"])
            / (before["error feedback"] / before["chance"]),
            "best error over plain codes of the same true bits": min(ratios)}  # fmt: skip


def residuals(setting: Setting) -> Mapping[str, float]:
    """E8: residual binary error over its closed form, and how far BiLLM is from the limit at its true rate."""
    from theory.huang_2024_billm import SOURCES, distance, matrix, residual_orders, rounded_residuals

    x = matrix("Gaussian", setting.model, setting.seed)
    off = rounded_residuals(x, 2) / float(residual_orders(SOURCES["Gaussian"], 2)[1][1])
    found = distance("Gaussian", "as published", setting.model, setting.seed)
    return {"error over its closed form": off, "true bits": found["bits"], "bits from the limit": found["distance"]}


def perception(setting: Setting) -> Mapping[str, float]:
    """E9: what matching the source's distribution costs in squared error, of scalar quantizers of a Gaussian."""
    from theory.blau_2019_perception import sampled

    found: dict[str, float] = {}
    for rate in (1.0, 2.0, 3.0):
        for dithered in (False, True):
            plain, matched = (sampled(rate, kept, dithered, setting.seed)[1] for kept in (0.0, 1.0))
            found[f"{'with' if dithered else 'without'} common randomness, {rate:g} bits"] = matched / plain
    return found


CLAIMS = (
    Claim(id="E1", group=GROUP, kind="theorem", measure=identity,
          sentence="OPTQ's error identity and the bounds that follow hold: no violation in any case.",
          rule=(below("deviation from the identity", _EXACT), below("largest share of the bound, nearest", 1 + _EXACT),
                below("largest share of the bound, stochastic", 1 + _EXACT))),
    Claim(id="E2", group=GROUP, kind="mechanism", measure=sup_norm, seeds=8, takes="cases",
          sentence="Stochastic rounding has better l-infinity guarantees than deterministic rounding, and better "
                   "typical values.",
          rule=tuple(below(f"{what}, {kind}, {how}", 1.0) for what in ("guaranteed", "typical")
                     for kind in ("random", "adversarial") for how in ("without", "with feedback"))),
    Claim(id="E3", group=GROUP, kind="mechanism", measure=order, seeds=8, takes="cases",
          sentence="Decreasing-norm order is the right order for GPTQ.",
          rule=(below("decreasing over given, norms alike", 1.0), below("decreasing over given, norms spread", 1.0),
                below("decreasing over smallest pivot last, norms alike", 1.01),
                below("decreasing over smallest pivot last, norms spread", 1.01))),
    Claim(id="E4", group=GROUP, kind="theorem", measure=babai,
          sentence="GPTQ is LDLQ is Babai's nearest plane, code for code.",
          rule=tuple(above(f"share of equal codes, {name}", 0.999) for name in ("gptq", "ldlq", "babai"))),
    Claim(id="E5", group=GROUP, kind="theorem", measure=losses, seeds=8,
          sentence="GPTQ can lose to RTN on one instance; with clipping it is not optimal among feedback methods.",
          rule=(above("share of rows lost", 0.0), above("share of rows lost, 2 bits with ends", 0.0),
                above("error over nearest's, 4 bits with ends, a bad case", 1.0)),
          scope="that there are such cases; in the mean of random ones feedback wins, and no damping of it wins more"),
    Claim(id="E6", group=GROUP, kind="mechanism", measure=entropy_gap, takes="cases", seeds=5,
          sentence="GPTQ with entropy coding is 0.2546 bit plus half the log of the pivots' arithmetic-to-geometric "
                   "mean ratio from the limit.",
          rule=tuple(below(f"{way}, near {name}: off by", 0.02) for name in ("4 bits", "1.5 bits")
                     for way in ("GPTQ", "WaterSIC"))),
    Claim(id="E7", group=GROUP, kind="mechanism", measure=expansion, takes="cases", seeds=5,
          sentence="Model expansion moves quantization noise into the null space of the expanded inputs, and out of "
                   "the stiff directions; it is better than spending the same bits on rate.",
          rule=(above("null space over chance, feedback", 1.5), above("null space over chance, nearest", 1.5),
                below("stiffest directions, expanded over plain", 1.0),
                below("best error over plain codes of the same true bits", 1.0))),
    Claim(id="E8", group=GROUP, kind="mechanism", measure=residuals, takes="cases", seeds=12,
          sentence="BiLLM's binary residual approximation follows its closed form, and is within half a bit of R(D) at "
                   "its true rate.",
          rule=(above("error over its closed form", 0.98), below("error over its closed form", 1.02),
                below("bits from the limit", 0.5))),
    Claim(id="E9", group=GROUP, kind="theorem", measure=perception, takes="every", seeds=12,
          sentence="On the rate-distortion-perception plane, matching the source's distribution costs at most a factor "
                   "of two in distortion.",
          rule=tuple(below(f"{how} common randomness, {rate} bits", 2.01) for how in ("with", "without")
                     for rate in (1, 2, 3))),
)  # fmt: skip
