"""The disk cache: directories named by the hash of what they hold, written beside and renamed when whole.

`BITFRONTIER_CACHE` says where, `BITFRONTIER_CACHE_GIB` how large it may grow (20 by default): the entries that have
not been used for longest go first, those in use by this process never.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import platformdirs

_ABANDONED = 24 * 3600.0  # seconds after which an unfinished entry is no one's work any more
_GIVEN: set[Path] = set()  # entries that this process was given


def cache_root() -> Path:
    """The directory of the cache; made when first asked for."""
    root = Path(os.environ.get("BITFRONTIER_CACHE") or platformdirs.user_cache_path("bitfrontier"))
    root.mkdir(parents=True, exist_ok=True)
    return root


def keep(description: str, make: Callable[[Path], None]) -> Path:
    """The directory that `make` fills, made once for a `description` of everything it depends on."""
    entry = cache_root() / hashlib.sha256(description.encode()).hexdigest()[:32]
    _GIVEN.add(entry)
    if not entry.is_dir():
        with _alone_with(entry):
            if not entry.is_dir():  # else another process has just made the same
                _make(entry, description, make)
        _prune(entry.parent)
    os.utime(entry)
    return entry


@contextmanager
def _alone_with(entry: Path) -> Iterator[None]:
    """Wait until no other process is making this entry; the lock goes with the process that holds it."""
    lock = entry.with_suffix(".lock")
    with lock.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _make(entry: Path, description: str, make: Callable[[Path], None]) -> None:
    beside = Path(tempfile.mkdtemp(prefix="new-", dir=entry.parent))
    try:
        make(beside)
        (beside / "description.txt").write_text(description + "\n")
        beside.rename(entry)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def keep_array(description: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array kept as `.npy`, mapped from disk: writing to it changes this process's copy alone."""
    return np.load(keep(description, lambda path: np.save(path / "array.npy", make())) / "array.npy", mmap_mode="c")


def _prune(root: Path) -> None:
    """Remove what killed processes left unfinished, and the entries unused for longest until the bound is kept.

    Entries that this process has been given stay, even beyond the bound: it reads them when it needs them.
    """
    limit = float(os.environ.get("BITFRONTIER_CACHE_GIB", "20")) * 2**30
    entries: list[tuple[float, int, Path]] = []
    for path in root.iterdir():
        try:
            used, size = path.stat().st_mtime, sum(file.stat().st_size for file in path.iterdir())
        except OSError:
            continue  # another process has just removed or renamed it
        if not path.name.startswith("new-"):
            entries.append((used, size, path))
        elif used < time.time() - _ABANDONED:
            shutil.rmtree(path, ignore_errors=True)
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total > limit and path not in _GIVEN:
            shutil.rmtree(path, ignore_errors=True)
            total -= size
