"""Problems with known answers: nested arithmetic modulo 10, whose steps are written out.

A problem of three steps: on the left what is asked, on the right of the colon what is to be written.

    (((3+4)*7)-5)%10:3+4=7;7*7=9;9-5=4;

Every operation turns the ten digits one-to-one: + and - of 1 to 4, and * of 3, 7 and 9, the units modulo 10 but 1. So
over all problems of k steps all digits are equally frequent after every step, whatever the operation: without the value
before it one guess in ten is right, exactly. A true step never mends a wrong value, as *0 or *5 would: the answer is
right where all values are, or where errors cancel. Every one of the 110 facts (digit, operation, operand) is equally
frequent too.

Operands are small because a model must find something to begin with: of + and - of 1 to 9, any two of digit, operation
and operand say next to nothing of the value, and training stays at chance for long, as it does on parities. (After 130
updates of 1,024 characters, from the reference model's weights, 12% of values are right, and of these ones 99.9%.)

A quarter of all problems, by a hash of what is asked, is never trained on. It is whole problems that are held out:
their single steps, and what is in their inner brackets, do occur within others.
"""

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np

OPERATIONS = (
    *(("+", d) for d in range(1, 5)),
    *(("-", d) for d in range(1, 5)),
    *(("*", d) for d in (3, 7, 9)),
)
CHANCE = 0.1  # of guessing a digit
LONGEST = 6  # steps of a training problem
STEP = 6  # characters of a written step
VALUE = 4  # where in a step its value stands
ASKED, COPIED, FOUND = 0, 1, 2  # kinds of characters in a training row: chance, what follows from reading, values
ALPHABET = "0123456789()+-*%:=;\n"
_HELD_OUT = 4  # one problem in so many
_LISTED = 10_000  # up to so many problems of k steps are listed whole, and drawn from the list


@dataclass(frozen=True, slots=True)
class Problem:
    """A first digit, and steps: each an operation and its second operand."""

    first: int
    steps: tuple[tuple[str, int], ...]

    @property
    def values(self) -> tuple[int, ...]:
        """The digit after each step."""
        return tuple(itertools.accumulate(self.steps, _applied, initial=self.first))[1:]

    @property
    def answer(self) -> int:
        """The digit after the last step."""
        return self.values[-1]

    @property
    def asked(self) -> str:
        """What is asked, colon included: 4 k + 5 characters.

        >>> Problem(3, (("+", 4), ("*", 7))).asked
        '((3+4)*7)%10:'
        """
        return "(" * len(self.steps) + str(self.first) + "".join(f"{op}{d})" for op, d in self.steps) + "%10:"

    @property
    def written(self) -> str:
        """The steps, `STEP` characters each.

        >>> Problem(3, (("+", 4), ("*", 7))).written
        '3+4=7;7*7=9;'
        """
        befores = (self.first, *self.values)
        return "".join(f"{a}{op}{d}={b};" for a, (op, d), b in zip(befores, self.steps, self.values, strict=False))

    @property
    def held_out(self) -> bool:
        """Whether it is never trained on."""
        return int(hashlib.sha256(self.asked.encode()).hexdigest()[:8], 16) % _HELD_OUT == 0


def _applied(value: int, step: tuple[str, int]) -> int:
    operation, operand = step
    if operation == "+":
        return (value + operand) % 10
    return (value - operand) % 10 if operation == "-" else value * operand % 10


def characters(steps: int) -> int:
    """The length of a problem: a line break in front, what is asked, what is written.

    >>> characters(1) == 1 + len("(3+4)%10:3+4=7;")
    True
    """
    return 1 + 4 * steps + 5 + STEP * steps


def draw(rng: np.random.Generator, steps: int, *, held_out: bool) -> Problem:
    """A problem, uniform over those of so many steps that are, or are not, held out."""
    while True:
        first, *chosen = rng.integers((10, *[len(OPERATIONS)] * steps))
        problem = Problem(int(first), tuple(OPERATIONS[i] for i in chosen))
        if problem.held_out == held_out:
            return problem


def draw_distinct(rng: np.random.Generator, steps: int, count: int) -> list[Problem]:
    """Different held-out problems of so many steps; all there are where these are no more than `count`.

    Raises `ValueError` for less than one step or problem.
    """
    if steps < 1 or count < 1:
        raise ValueError(f"{count} problems of {steps} steps: expected at least 1 of each")
    if 10 * len(OPERATIONS) ** steps <= _LISTED:
        every = [Problem(first, chosen) for first in range(10)
                 for chosen in itertools.product(OPERATIONS, repeat=steps)]  # fmt: skip
        held = [problem for problem in every if problem.held_out]
        return [held[i] for i in rng.permutation(len(held))[:count]]
    found: dict[Problem, None] = {}
    while len(found) < count:
        found[draw(rng, steps, held_out=True)] = None
    return list(found)


def training_row(
    rng: np.random.Generator, length: int, longest: int = LONGEST, *, held_out: bool = False
) -> tuple[str, np.ndarray]:
    """Text of `length` characters, whole problems on a line each, and the kind of every character, (length,).

    The problems are those to train on; `held_out` ones make a row that looks the same, to measure on.

    Each problem has 1 to `longest` steps, any number of those that still fit, uniformly; the rest is line breaks. To be
    learned are the steps, whose values are `FOUND` and all else `COPIED`, and the line break that ends them: what is
    `ASKED` is chance. Raises `ValueError` where no problem fits.
    """
    text, kinds = "", np.full(length, ASKED, dtype=np.int8)
    while fit := [k for k in range(1, longest + 1) if len(text) + characters(k) < length]:  # and a line break behind
        problem = draw(rng, int(rng.choice(fit)), held_out=held_out)
        text += f"\n{problem.asked}{problem.written}"
        written = len(text) - len(problem.written)
        kinds[written : len(text) + 1] = COPIED
        kinds[written + VALUE : len(text) : STEP] = FOUND
    if not text:
        raise ValueError(f"a row of {length} characters: expected room for a problem, {characters(1) + 1} or more")
    return text.ljust(length, "\n"), kinds
