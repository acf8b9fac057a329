"""Text to adapt models to: files, the source of installed packages and written-out problems, cut into rows of tokens.

A package is split by file as the reference text is (`suite.reference.text`): a file's part follows from the hash of its
name. Evaluation rows that share a run of 32 tokens with the training part of any package, or with rows that are given,
are dropped. A text file is whole, whatever the part: which file is for what is said by whoever names it.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from suite.models.checkpoint import Checkpoint
from suite.reasoning.letters import Letters
from suite.reasoning.problems import training_row
from suite.reference.text import RUN, START, Package, Part, cut_rows, repeats_of
from suite.tokens import Tokens, encode, read_text, reads_as_shipped

PROBLEMS = "reasoning"  # the source that is no file and no package
PROBLEM_ROWS = 1024  # of problems, where nothing is said: a quarter of a million tokens at the reference's length


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which `part` of each source, in rows of `length` tokens, at most `rows` of them spread evenly.

    `seed` draws problems. In text files a document begins at every line that `heading` matches, the whole of it.
    """

    part: Part
    length: int
    rows: int | None = None
    seed: int = 0
    heading: str | None = None

    def __post_init__(self) -> None:
        if self.length < 2 or (self.rows is not None and self.rows < 1):
            raise ValueError(f"length {self.length}, rows {self.rows}: expected at least 2 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What a source gave: `documents` of `n_bytes` in UTF-8 and `n_tokens`, and `rows` of them.

    `clusters` says what rows are clustered by. `repeated` rows were dropped because they repeat training, and files
    `left_out` because they are not UTF-8.
    """

    name: str
    clusters: str
    documents: int
    n_bytes: int
    n_tokens: int
    rows: int
    repeated: int
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """A source as tokens: rows (n, length), the cluster of each (n,), and what training tokens (m,) there are."""

    name: str
    clusters: str
    documents: int
    n_bytes: int
    n_tokens: int
    rows: np.ndarray
    owners: np.ndarray
    training: np.ndarray
    left_out: tuple[str, ...] = ()


def collect(
    sources: list[str], wanted: Wanted, checkpoint: Checkpoint, against: Tokens | None = None
) -> tuple[Tokens, list[Text]]:
    """Rows of all `sources`, one after the other, and what each gave.

    A source is a `.txt` file, the import name of an installed package, or "reasoning". Rows that share a run of 32
    tokens with `against` are dropped from every part. Raises `ValueError` in one line for what is none of these, for a
    source that gives no row, and for a part of "reasoning" that there is not.
    """
    read = [_read(source, wanted, checkpoint) for source in sources]
    seen = np.concatenate([found.training for found in read] + ([] if against is None else [against.rows.flatten()]))
    parts: list[Tokens] = []
    texts: list[Text] = []
    for found in read:
        repeated = repeats_of(found.rows, seen) if len(seen) else np.zeros(len(found.rows), dtype=bool)
        if repeated.all():
            why = f", {len(repeated)} repeat training" if len(repeated) else ""
            raise ValueError(f"{found.name}: its {wanted.part} part has no row of {wanted.length} tokens{why}")
        kept = Tokens(found.rows[~repeated], found.owners[~repeated])
        kept = kept.spread(None if wanted.rows is None else wanted.rows * wanted.length)
        parts.append(Tokens(kept.rows, kept.clusters + sum(int(part.clusters.max()) + 1 for part in parts)))
        texts.append(Text(name=found.name, clusters=found.clusters, documents=found.documents, n_bytes=found.n_bytes,
                          n_tokens=found.n_tokens, rows=len(kept.rows), repeated=int(repeated.sum()),
                          left_out=found.left_out))  # fmt: skip
    rows, clusters = (np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "clusters"))
    return Tokens(rows, clusters), texts


def _read(source: str, wanted: Wanted, checkpoint: Checkpoint) -> _Read:
    if source == PROBLEMS:
        return _problems(wanted, checkpoint)
    return _file(Path(source), wanted, checkpoint) if source.endswith(".txt") else _package(source, wanted, checkpoint)


def _problems(wanted: Wanted, checkpoint: Checkpoint) -> _Read:
    """Rows of whole problems, a token for a character: of held-out ones in the evaluation part."""
    if wanted.part not in ("training", "evaluation"):
        raise ValueError(f"{PROBLEMS}: its parts are training and evaluation, not {wanted.part}")
    held_out, count = wanted.part == "evaluation", wanted.rows or PROBLEM_ROWS
    letters = Letters.of(checkpoint.tokenizer().backend_tokenizer, checkpoint.name)
    rng = np.random.default_rng((wanted.seed, int(held_out), 4))  # 1 to 3 more numbers are `suite.reasoning`'s
    texts = [training_row(rng, wanted.length, held_out=held_out)[0] for _ in range(count)]
    rows = letters.rows(texts)
    return _Read(name=PROBLEMS, clusters="row", documents=count, n_bytes=rows.size, n_tokens=rows.size, rows=rows,
                 owners=np.arange(count), training=_NONE)  # fmt: skip


_NONE = np.zeros(0, dtype=np.int64)


def _file(path: Path, wanted: Wanted, checkpoint: Checkpoint) -> _Read:
    text = read_text(path)
    documents = [text] if wanted.heading is None else split_at(text, wanted.heading, str(path))
    ids = encode(checkpoint, documents)
    rows, owners = cut_rows(ids, wanted.length)
    return _Read(name=path.name, clusters="row" if wanted.heading is None else "document", documents=len(documents),
                 n_bytes=len(text.encode()), n_tokens=sum(map(len, ids)), rows=rows,
                 owners=np.arange(len(rows)) if wanted.heading is None else owners, training=_NONE)  # fmt: skip


def split_at(text: str, heading: str, name: str) -> list[str]:
    r"""The documents of a text: each begins at a line that `heading` matches, and what is before the first is one.

    Raises `ValueError`, naming the text, for what is no regular expression, and where no line matches.

    >>> split_at("# a\nx\n# b\ny\n", "# .*", "notes.txt")
    ['# a\nx\n', '# b\ny\n']
    """
    try:
        pattern = re.compile(heading)
    except re.error as error:
        raise ValueError(f"heading {heading!r}: not a regular expression: {error}") from error
    starts, at = [], 0
    for line in text.split("\n"):
        if pattern.fullmatch(line):
            starts.append(at)
        at += len(line) + 1
    if not starts:
        raise ValueError(f"heading {heading!r}: no line of {name} is one")
    first = [] if starts[0] == 0 else [0]
    return [text[a:b] for a, b in pairwise([*first, *starts, len(text)])]


def _package(name: str, wanted: Wanted, checkpoint: Checkpoint) -> _Read:
    package = Package.find(name)
    files, left_out = package.files(wanted.part)
    prefix = START if reads_as_shipped(checkpoint) else ""  # as every file of the text that it was trained on
    ids = encode(checkpoint, [prefix + text for text in files.values()])
    rows, owners = cut_rows(ids, wanted.length)
    training = _NONE
    if wanted.part == "evaluation":
        texts = [prefix + text for text in package.files("training")[0].values()]
        training = np.concatenate([_NONE, *(np.array(found, dtype=np.int64) for found in encode(checkpoint, texts))])
    return _Read(name=f"{name} {package.version}", clusters="file", documents=len(files),
                 n_bytes=sum(len(text.encode()) for text in files.values()),
                 n_tokens=sum(map(len, ids)) - (len(ids) if prefix else 0), rows=rows, owners=owners,
                 training=training, left_out=left_out)  # fmt: skip


def said(text: Text, length: int) -> str:
    """A source in one line, for people.

    >>> said(Text(name="a 1.0", clusters="file", documents=3, n_bytes=2000, n_tokens=700, rows=2, repeated=0,
    ...           left_out=()), 256)
    'a 1.0: 3 documents, 2,000 bytes, 0.350 tokens per byte; 2 rows of 256 tokens, clustered by file'
    """
    density = text.n_tokens / text.n_bytes
    parts = [f"{text.documents:,} documents, {text.n_bytes:,} bytes, {density:.3f} tokens per byte",
             f"{text.rows:,} rows of {length} tokens, clustered by {text.clusters}"]  # fmt: skip
    if text.repeated:
        rows = "1 row dropped, which repeats" if text.repeated == 1 else f"{text.repeated:,} rows dropped, which repeat"
        parts.append(f"{rows} {RUN} tokens of training")
    if text.left_out:
        parts.append(f"{len(text.left_out)} files left out, which are not UTF-8")
    return f"{text.name}: {'; '.join(parts)}"
