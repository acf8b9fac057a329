"""The text of the reference checkpoint: the Python source of the pinned `sympy`, split by file and cut into rows.

Nothing of the text is shipped. Whoever has the pinned package installed rebuilds the same tokens in seconds, and
`card.json` beside this file holds their SHA-256 sums. A file's part follows from the hash of its name, so no list of
files is kept either; evaluation rows that share a run of 32 tokens with the training part are dropped (`card.json`
lists them, because finding them takes the whole training part).

The source of other packages, to adapt models to, is read and split in the same way.
"""

import hashlib
import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

PINNED = "1.14.0"
LENGTH = 256  # tokens in a row; the reference model's context
RUN = 32  # an evaluation row that repeats this many consecutive training tokens is dropped
START = "<|file|>"  # the only special token, id 0: every file begins with it

Part = Literal["training", "calibration", "validation", "evaluation"]
_BUCKETS: dict[int, Part] = {0: "calibration", 1: "calibration", 2: "validation", 3: "evaluation", 4: "evaluation"}


def part_of(name: str) -> Part:
    """The part a file belongs to, from the hash of its name (posix path relative to the package): 5 of 50 held out."""
    bucket = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 50
    return _BUCKETS.get(bucket, "training")


def read_files(part: Part) -> dict[str, str]:
    """Name and text of every source file of `part`, sorted by name; `ValueError` unless the pinned sympy is there."""
    spec = importlib.util.find_spec("sympy")
    found = importlib.metadata.version("sympy") if spec else "none"
    if spec is None or spec.origin is None or found != PINNED:
        raise ValueError(f"the reference text needs sympy=={PINNED}, found {found}: pip install sympy=={PINNED}")
    root = Path(spec.origin).parent
    return {name: (root / name).read_text(encoding="utf8") for name in _names(root, part)}


def _names(root: Path, part: Part) -> list[str]:
    """Posix paths, relative to a package, of its source files of `part`."""
    return sorted(name for path in root.rglob("*.py") if part_of(name := path.relative_to(root).as_posix()) == part)


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package: its import name, its version, and where its files are."""

    name: str
    version: str
    root: Path

    @classmethod
    def find(cls, name: str) -> "Package":
        """The package of this import name, which is not imported; `ValueError` where there is none, or no version."""
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        places = list(spec.submodule_search_locations or ()) if spec else []
        if len(places) != 1 or not Path(places[0]).is_dir():
            raise ValueError(f"{name}: expected the import name of an installed package, one directory of files")
        if name in sys.stdlib_module_names:
            return cls(name, platform.python_version(), Path(places[0]))
        providers = importlib.metadata.packages_distributions().get(name, [])
        if not providers:
            raise ValueError(f"{name}: no installed distribution has this package, so its version is not known")
        return cls(name, importlib.metadata.version(providers[0]), Path(places[0]))

    def files(self, part: Part) -> tuple[dict[str, str], tuple[str, ...]]:
        """Name and text of every source file of `part`, sorted by name, and the names of those that are not UTF-8."""
        found, odd = {}, []
        for name in _names(self.root, part):
            try:
                found[name] = (self.root / name).read_text(encoding="utf8")
            except UnicodeDecodeError:
                odd.append(name)
        return found, tuple(odd)


def cut_rows(documents: Sequence[Sequence[int] | np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut each document into rows of `length` tokens, dropping partial ones.

    Returns the rows (n, length), int64, and the index of the document each row comes from, (n,).
    """
    rows = [(index, document[start : start + length])
            for index, document in enumerate(documents)
            for start in range(0, len(document) - length + 1, length)]  # fmt: skip
    tokens = np.array([row for _, row in rows], dtype=np.int64).reshape(-1, length)
    return tokens, np.array([index for index, _ in rows], dtype=np.int64)


def rows_sha256(rows: np.ndarray, owners: np.ndarray) -> str:
    """What a part of the text must hash to: its rows (n, length), then the file each comes from (n,)."""
    return hashlib.sha256(rows.astype("<i8").tobytes() + owners.astype("<i8").tobytes()).hexdigest()


def repeats_of(rows: np.ndarray, training: np.ndarray, run: int = RUN) -> np.ndarray:
    """Which `rows` (n, length) share `run` consecutive tokens with the `training` stream (m,): booleans (n,).

    Runs are compared by a 64-bit polynomial hash; a collision could only drop one row too many. Raises `ValueError` for
    rows shorter than a run.
    """
    if rows.shape[1] < run:
        raise ValueError(f"rows of {rows.shape[1]} tokens: expected at least {run}, the run that they may not share")
    if len(training) < run:
        return np.zeros(len(rows), dtype=bool)
    seen = np.sort(_run_hashes(training[None], run)[0])
    hashes = _run_hashes(rows, run)
    place = np.minimum(np.searchsorted(seen, hashes), len(seen) - 1)
    return (seen[place] == hashes).any(axis=1)


def _run_hashes(rows: np.ndarray, run: int) -> np.ndarray:
    multiplier = np.uint64(6364136223846793005)  # Knuth's MMIX multiplier: odd, so products wrap without losing bits
    width = rows.shape[1] - run + 1
    hashes = np.zeros((rows.shape[0], width), dtype=np.uint64)
    for offset in range(run):
        hashes = hashes * multiplier + rows[:, offset : offset + width].astype(np.uint64) + np.uint64(1)
    return hashes
