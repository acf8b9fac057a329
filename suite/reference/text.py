"""The text of the reference checkpoint: the Python source of the pinned `sympy`, split by file and cut into rows.

Nothing of the text is shipped. Whoever has the pinned package installed rebuilds the same tokens in seconds, and
`card.json` beside this file holds their SHA-256 sums. A file's part follows from the hash of its name, so no list of
files is kept either; evaluation rows that share a run of 32 tokens with the training part are dropped (`card.json`
lists them, because finding them takes the whole training part).
"""

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
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
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return {name: (root / name).read_text(encoding="utf8") for name in names if part_of(name) == part}


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

    Runs are compared by a 64-bit polynomial hash; a collision could only drop one row too many.
    """
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
