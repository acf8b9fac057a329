"""What a model made of n problems of k steps, as figures with their standard errors.

Two readings of the same n x 6k characters: *free*, which the model wrote all by itself, always the most likely one, and
*forced*, each picked with the true ones before it. Free is right throughout where forced is, so the share of problems
with all steps right can be had from either; what differs is what follows after the first error.

Were a problem's steps right independently of each other, all would be with the product of the shares in which each is
right, over its place. (The mean share to the power k is that product where all places are equally hard, and else above
it.) By how much more often all are right says that errors fall together: some problems are hard, or some facts.
"""

from dataclasses import dataclass

import numpy as np

from suite.reasoning.problems import STEP, VALUE


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over problems, with its standard error: 0 where all are alike, NaN for a single one."""

    value: float
    error: float

    @classmethod
    def of(cls, values: np.ndarray, around: float | None = None) -> "Mean":
        """Of one value for each problem (n,); `around` replaces their mean where they are influences on a figure."""
        n = len(values)
        error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
        return cls(float(values.mean()) if around is None else around, error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Of n problems of k steps, booleans (n, 6 k): which characters are the true ones, free and forced.

    `nats` (n, 6 k) are the negative log-likelihoods of the true characters.
    """

    free: np.ndarray
    forced: np.ndarray
    nats: np.ndarray

    @property
    def answer(self) -> np.ndarray:
        """Whether the last value is right that the model reaches by itself, (n,): by its place, all else aside."""
        return self.free[:, VALUE - STEP]

    @property
    def right(self) -> np.ndarray:
        """Whether all that the model writes by itself is right, (n,)."""
        return np.asarray(self.free.all(axis=1))

    @property
    def steps(self) -> np.ndarray:
        """Whether each step is right given the true ones before, (n, k): all its characters, copied and found."""
        return np.asarray(self._by_step.all(axis=2))

    @property
    def values(self) -> np.ndarray:
        """Whether each step's value is, given its left side too, (n, k): the arithmetic alone."""
        return self._by_step[:, :, VALUE]

    @property
    def _by_step(self) -> np.ndarray:
        return self.forced.reshape(len(self.forced), -1, STEP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Shares of problems, or of steps, that are right; see `Marks`.

    `by_place` has the share of right steps for each place. `independent` is their product, and `excess` the share of
    problems that are right throughout over it. `nats` are per character.
    """

    answer: Mean
    right: Mean
    step: Mean
    value: Mean
    independent: Mean
    excess: Mean
    nats: Mean
    by_place: tuple[float, ...]

    @classmethod
    def of(cls, marks: Marks) -> "Scores":
        """Errors are of means over problems; of products and differences by their linearization."""
        steps = marks.steps.astype(np.float64)
        by_place = steps.mean(axis=0)
        product = float(by_place.prod())
        others = np.array([np.delete(by_place, i).prod() for i in range(len(by_place))])
        influences = (steps - by_place) @ others
        right = marks.right.astype(np.float64)
        return cls(
            answer=Mean.of(marks.answer), right=Mean.of(right),
            step=Mean.of(steps.mean(axis=1)), value=Mean.of(marks.values.mean(axis=1)),
            independent=Mean.of(influences, product), excess=Mean.of(right - influences, float(right.mean()) - product),
            nats=Mean.of(marks.nats.mean(axis=1)), by_place=tuple(by_place.tolist()),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of the unquantized model's shares on the same problems: differences, with paired errors."""

    answer: Mean
    right: Mean
    step: Mean

    @classmethod
    def of(cls, marks: Marks, base: Marks) -> "Change":
        """`base` are the unquantized model's marks on the same problems, in the same order."""
        return cls(
            answer=_difference(marks.answer, base.answer), right=_difference(marks.right, base.right),
            step=_difference(marks.steps.mean(axis=1), base.steps.mean(axis=1)),
        )  # fmt: skip


def _difference(found: np.ndarray, base: np.ndarray) -> Mean:
    return Mean.of(found.astype(np.float64) - base.astype(np.float64))
