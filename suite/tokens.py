"""Token rows: from a file of them, from a text, or from the reference text, always with a hash and with clusters."""

import hashlib
import json
import zipfile
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from suite.cache import keep_array
from suite.models.checkpoint import REFERENCE, Checkpoint, is_shipped
from suite.reference.text import LENGTH, START, Part, cut_rows, read_files, rows_sha256


@dataclass(frozen=True, eq=False)
class Tokens:
    """Rows (n, length), int64, and the source file each row comes from (or its own number), (n,)."""

    rows: np.ndarray
    clusters: np.ndarray

    @cached_property
    def sha256(self) -> str:
        """A hash of rows and clusters."""
        joined = self.rows.astype("<i8").tobytes() + self.clusters.astype("<i8").tobytes()
        return hashlib.sha256(str(self.rows.shape).encode() + joined).hexdigest()

    def tensor(self) -> torch.Tensor:
        """The rows as a tensor."""
        return torch.from_numpy(self.rows)

    def spread(self, tokens: int | None) -> "Tokens":
        """At most about this many tokens, in rows spread evenly over all of them."""
        wanted = len(self.rows) if tokens is None else max(1, tokens // self.rows.shape[1])
        if wanted >= len(self.rows):
            return self
        chosen = np.linspace(0, len(self.rows) - 1, wanted).round().astype(np.int64)
        return Tokens(self.rows[chosen], self.clusters[chosen])

    def draw(self, tokens: int | None, seed: int) -> "Tokens":
        """At most about this many tokens, in rows drawn by `seed` and kept in order."""
        wanted = len(self.rows) if tokens is None else max(1, tokens // self.rows.shape[1])
        if wanted >= len(self.rows):
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self.rows), wanted, replace=False))
        return Tokens(self.rows[chosen], self.clusters[chosen])


def load_tokens(source: str | None, part: Part, checkpoint: Checkpoint, length: int) -> Tokens:
    """Rows of `length` tokens for a checkpoint: from a file, or from a part of the reference text.

    A `.npz` file, which `save_tokens` wrote, has a cluster for each row, and knows the vocabulary that it is written
    in; of a `.npy` file each row is a cluster. `length` cuts their longer rows; a partial last row is dropped. Raises
    `ValueError` in one line for a file that is not there or not tokens, for another vocabulary than the checkpoint's,
    ids beyond it, and a text of less than one row.
    """
    if source is None:
        tokens = _reference_rows(part, checkpoint, length)
    elif source.endswith(".npy"):
        tokens = _array_rows(Path(source), length)
    elif source.endswith(".npz"):
        tokens = _kept_rows(Path(source), checkpoint, length)
    elif source.endswith(".txt"):
        tokens = _text_rows(Path(source), checkpoint, length)
    else:
        raise ValueError(f"{source}: expected a .txt, .npy or .npz file")
    vocabulary = int(checkpoint.config.vocab_size)
    low, high = int(tokens.rows.min()), int(tokens.rows.max())
    if low < 0 or high >= vocabulary:
        found = low if low < 0 else high
        raise ValueError(f"{source}: token id {found} is outside the model's vocabulary of {vocabulary}")
    return tokens


def save_tokens(path: Path, tokens: Tokens, checkpoint: Checkpoint, about: str) -> None:
    """Write rows with their clusters, what they are `about`, and the hash of the checkpoint's vocabulary, as `.npz`."""
    np.savez_compressed(path, rows=tokens.rows.astype("<i4"), clusters=tokens.clusters.astype("<i8"),
                        vocabulary=np.array(_vocabulary_sha256(checkpoint)), about=np.array(about))  # fmt: skip


def _vocabulary_sha256(checkpoint: Checkpoint) -> str:
    """A hash of what each token id stands for; empty for a checkpoint that has no `tokenizer.json`."""
    file = checkpoint.path / "tokenizer.json"
    if not file.is_file():
        return ""
    try:
        known = Tokenizer.from_file(str(file)).get_vocab()
    except Exception as error:  # `tokenizers` raises a bare one for a spoiled file
        raise ValueError(f"{file}: cannot be read as a tokenizer: {error}") from error
    return hashlib.sha256(json.dumps(sorted(known.items())).encode()).hexdigest()


def _kept_rows(path: Path, checkpoint: Checkpoint, length: int) -> Tokens:
    try:
        with np.load(path, allow_pickle=False) as found:
            rows, clusters, vocabulary = found["rows"], found["clusters"], str(found["vocabulary"])
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read as what `bitfrontier tokens` writes: {error}") from error
    _check_rows(path, rows)
    if clusters.shape != (len(rows),) or not np.issubdtype(clusters.dtype, np.integer):
        raise ValueError(f"{path}: expected a cluster for each of {len(rows)} rows, found {clusters.dtype} of shape "
                         f"{clusters.shape}")  # fmt: skip
    own = _vocabulary_sha256(checkpoint)
    if own and vocabulary and own != vocabulary:
        raise ValueError(f"{path}: written in another model's tokens, {checkpoint.name} has another vocabulary")
    return _shorten(rows.astype(np.int64), clusters.astype(np.int64), length)


def _array_rows(path: Path, length: int) -> Tokens:
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as .npy: {error}") from error
    _check_rows(path, rows)
    return _shorten(rows.astype(np.int64), np.arange(len(rows)), length)


def _check_rows(path: Path, rows: object) -> None:
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer) or not rows.size:
        found = f"{rows.dtype} of shape {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise ValueError(f"{path}: expected integers of shape (sequences, length), found {found}")
    if rows.shape[1] < 2:
        raise ValueError(f"{path}: rows of {rows.shape[1]} token predict nothing")


def _shorten(rows: np.ndarray, clusters: np.ndarray, length: int) -> Tokens:
    """Rows longer than `length` as several rows of it, partial ones dropped."""
    per_row = max(1, rows.shape[1] // length)
    cut = rows[:, : per_row * length]
    return Tokens(cut.reshape(len(rows) * per_row, -1), np.repeat(clusters, per_row))


def read_text(path: Path) -> str:
    """The text of a file; `ValueError` for one that cannot be read, is not UTF-8, or is empty."""
    try:
        text = path.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as text: {error}") from error
    if not text.strip():
        raise ValueError(f"{path}: the text is empty")
    return text


def _text_rows(path: Path, checkpoint: Checkpoint, length: int) -> Tokens:
    rows, _ = cut_rows(encode(checkpoint, [read_text(path)]), length)
    if not len(rows):
        raise ValueError(f"{path}: less than one row of {length} tokens")
    return Tokens(rows, np.arange(len(rows)))


def encode(checkpoint: Checkpoint, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, with the checkpoint's own tokenizer and nothing added."""
    backend = checkpoint.tokenizer().backend_tokenizer
    return [encoded.ids for encoded in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _reference_rows(part: Part, checkpoint: Checkpoint, length: int) -> Tokens:
    """The reference text as the checkpoint tokenizes it.

    Whatever has the shipped model's tokenizer has its rows, which are checked by hash.
    """
    own = reads_as_shipped(checkpoint)
    width = LENGTH if own else length
    files = read_files(part)
    tokenizer = hashlib.sha256((checkpoint.path / "tokenizer.json").read_bytes()).hexdigest() if own else ""

    def make() -> np.ndarray:
        prefix = START if own else ""
        rows, owners = cut_rows(encode(checkpoint, [prefix + text for text in files.values()]), width)
        return np.concatenate([owners[:, None], rows], axis=1)

    found = keep_array(f"reference text {tokenizer or checkpoint.sha256} {part} {width}", make)
    rows, owners = found[:, 1:], found[:, 0]
    if own:
        card = json.loads((REFERENCE / "card.json").read_text())
        if part == "evaluation":
            dropped = card["dropped_evaluation_rows"]
            rows, owners = np.delete(rows, dropped, axis=0), np.delete(owners, dropped)
        if rows_sha256(rows, owners) != card["parts"][part]["sha256"]:
            raise ValueError(
                f"the {part} part of the reference text differs from the shipped sum: is sympy as released?"
            )
    if not len(rows):
        raise ValueError(f"the reference text has no row of {length} tokens")
    return _shorten(rows, owners, length)


def reads_as_shipped(checkpoint: Checkpoint) -> bool:
    """Whether a model reads text as the shipped one does, rows as long: models of its family, trained on its text."""
    if is_shipped(checkpoint.name):
        return True
    file = checkpoint.path / "tokenizer.json"
    return file.is_file() and checkpoint.context == LENGTH and file.read_bytes() == _shipped_tokenizer()


@cache
def _shipped_tokenizer() -> bytes:
    return (REFERENCE / "tokenizer.json").read_bytes()
