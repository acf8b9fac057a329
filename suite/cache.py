"""The disk cache: directories named by the hash of what they hold, written beside and renamed when whole.

`BITFRONTIER_CACHE` says where, `BITFRONTIER_CACHE_GIB` how large it may grow (20 by default): the entries that have
not been used for longest go first.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs


def cache_root() -> Path:
    """The directory of the cache; made when first asked for."""
    root = Path(os.environ.get("BITFRONTIER_CACHE") or platformdirs.user_cache_path("bitfrontier"))
    root.mkdir(parents=True, exist_ok=True)
    return root


def keep(description: str, make: Callable[[Path], None]) -> Path:
    """The directory that `make` fills, made once for a `description` of everything it depends on."""
    entry = cache_root() / hashlib.sha256(description.encode()).hexdigest()[:32]
    if not entry.is_dir():
        beside = Path(tempfile.mkdtemp(prefix="new-", dir=entry.parent))
        try:
            make(beside)
            (beside / "description.txt").write_text(description + "\n")
            beside.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another process was faster, and made the same
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        _prune(entry)
    os.utime(entry)
    return entry


def keep_array(description: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array kept as `.npy`, mapped from disk: writing to it changes this process's copy alone."""
    return np.load(keep(description, lambda path: np.save(path / "array.npy", make())) / "array.npy", mmap_mode="c")


def _prune(newest: Path) -> None:
    """Remove the entries unused for longest until the cache is within its bound; never the newest."""
    limit = float(os.environ.get("BITFRONTIER_CACHE_GIB", "20")) * 2**30
    entries = [path for path in newest.parent.iterdir() if path.is_dir() and not path.name.startswith("new-")]
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in entries}
    total = sum(sizes.values())
    for path in sorted(entries, key=lambda path: path.stat().st_mtime):
        if total <= limit:
            return
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]
