"""What a store says of models at problems of several steps: which rows belong together, and a sentence on them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from reports.frontier import listed
from suite.store import ReasoningRow, Store

KEPT = 0.9  # of the unquantized model's right answers: what a sentence asks for


@dataclass(frozen=True, slots=True)
class Solver:
    """A model, with a row for each number of steps."""

    rows: dict[int, ReasoningRow]

    @property
    def any(self) -> ReasoningRow:
        """One of its rows, for what all of them say."""
        return next(iter(self.rows.values()))

    @property
    def method(self) -> str:
        """What it was quantized by."""
        return self.any.method or "unquantized"

    @property
    def label(self) -> str:
        """The method, and its nominal bits where it has any."""
        return self.method if self.any.bits is None else f"{self.method} {self.any.bits:g}"

    @property
    def directory(self) -> str:
        """What it is called, without where it is."""
        return self.any.model.rstrip("/").rpartition("/")[2]

    @property
    def bpw(self) -> float:
        """True bits per weight; NaN where no weights are quantized."""
        return float("nan") if self.any.bpw is None else self.any.bpw


@dataclass(frozen=True, slots=True)
class Chain:
    """The models made of one unquantized model, and itself where it was asked, at problems of one seed.

    `solvers` are in the order of their bits.
    """

    base: Solver | None
    solvers: tuple[Solver, ...]

    @property
    def every(self) -> tuple[Solver, ...]:
        """The unquantized model first."""
        return (*(() if self.base is None else (self.base,)), *self.solvers)

    @property
    def rows(self) -> list[ReasoningRow]:
        """All rows."""
        return [row for solver in self.every for row in solver.rows.values()]

    @property
    def name(self) -> str:
        """What the unquantized model is called, or the beginning of its hash."""
        if self.base is not None:
            return self.base.directory
        return self.every[0].any.base_sha256[:12]

    @property
    def steps(self) -> list[int]:
        """The numbers of steps asked for."""
        return sorted({row.steps for row in self.rows})

    @property
    def series(self) -> dict[str, list[Solver]]:
        """The models that have bits per weight, by method; of those of one recipe all but the first by directory too.

        These differ in seeds, in the tokens they were calibrated on, or in what they were trained on.
        """
        found: dict[str, list[Solver]] = {}
        taken = set()
        for solver in self.drawn:
            kind = (solver.method, solver.any.recipe)
            own = solver.method if kind not in taken else f"{solver.method} ({solver.directory})"
            taken.add(kind)
            found.setdefault(own, []).append(solver)
        return dict(sorted(found.items()))

    @property
    def drawn(self) -> tuple[Solver, ...]:
        """The models that have bits per weight."""
        return tuple(solver for solver in self.solvers if solver.any.bpw is not None)


def read_reasoning(store: Store) -> list[Chain]:
    """The rows of a store by unquantized model and seed; of a model's rows of as many steps those of most problems.

    Of these the newest.
    """
    found: dict[tuple[str, int], dict[str, dict[int, ReasoningRow]]] = {}
    for row in store.rows(ReasoningRow):
        rows = found.setdefault((row.base_sha256, row.seed), {}).setdefault(row.model_sha256, {})
        kept = rows.get(row.steps)
        if kept is None or (row.problems, row.started) >= (kept.problems, kept.started):
            rows[row.steps] = row
    return [_chain(base, [Solver(dict(sorted(rows.items()))) for rows in models.values()])
            for (base, _), models in sorted(found.items())]  # fmt: skip


def _chain(base_sha256: str, solvers: Iterable[Solver]) -> Chain:
    order = sorted(solvers, key=lambda s: (s.any.bpw is None, s.any.bpw or 0.0, s.method, s.any.model_sha256))
    base = next((solver for solver in order if solver.any.model_sha256 == base_sha256), None)
    return Chain(base, tuple(solver for solver in order if solver is not base))


def chain_verdict(chain: Chain) -> str:
    """The fewest bits that keep most right answers of the longest problems; the fewest bits; whether errors cluster.

    Of models of as many bits the one with most right answers is meant.
    """
    k = chain.steps[-1]
    asked = sorted((s for s in chain.drawn if k in s.rows), key=lambda s: (s.bpw, -s.rows[k].answer))
    said, keep = [], None
    if chain.base is not None and k in chain.base.rows:
        whole = chain.base.rows[k]
        said.append(f"{_percent(whole.answer)} of the answers of {k} steps are right before anything is quantized.")
        keep = next((s for s in asked if s.rows[k].answer >= KEPT * whole.answer), None)
        if keep is not None:
            said.append(f"The fewest bits that keep {_percent(KEPT)} of them: {_described(keep, k)}.")
        elif asked:
            said.append(f"No model measured keeps {_percent(KEPT)} of them.")
    if asked and asked[0] is not keep:
        said.append(f"At the fewest bits measured: {_described(asked[0], k)}.")
    solvers = [solver for solver in chain.every if k in solver.rows]
    excess = median(solver.rows[k].excess for solver in solvers)
    sure = [s.label for s in solvers if abs(s.rows[k].excess) > 2 * s.rows[k].excess_se > 0]
    more = "more" if excess >= 0 else "less"
    said.append(
        f"All {k} steps are right {abs(100 * excess):.2g} percentage points {more} often than independent errors would "
        f"give, in the median of {len(solvers)} model{'' if len(solvers) == 1 else 's'}"
        + (f"; by over two standard errors for {listed(sure)}." if sure else "; for none by over two standard errors.")
    )
    return " ".join(said)


def _described(solver: Solver, k: int) -> str:
    row = solver.rows[k]
    text = f"{solver.label} ({solver.directory}) at {solver.bpw:.3g} bits, {_percent(row.answer)} right"
    text += f", {_percent(row.step)} of single steps"
    if row.ppl is None or row.ppl_base is None:
        return text
    return f"{text}, perplexity {row.ppl / row.ppl_base:.3g} times the unquantized model's"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def by_place(row: ReasoningRow) -> str:
    """The share of right steps at each place, in percent."""
    return " ".join(f"{100 * share:.1f}" for share in json.loads(row.by_place))
