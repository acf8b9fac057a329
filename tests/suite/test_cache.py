import multiprocessing
import os
import time

import numpy as np
import pytest

from suite import cache
from suite.cache import cache_root, keep, keep_array

KIB = 2**10
BOUND = str(3.5 * KIB / 2**30)  # room for three entries of one KiB and their descriptions


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITFRONTIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_GIVEN", set())


def one_kib(path):
    (path / "data").write_bytes(bytes(KIB))


def names():
    return {path.joinpath("description.txt").read_text().strip() for path in cache_root().iterdir()}


def test_an_entry_is_made_once():
    made = []
    paths = {keep("what it depends on", lambda path: made.append(path)) for _ in range(3)}
    assert len(made) == len(paths) == 1
    assert keep("something else", lambda path: made.append(path)) not in paths and len(made) == 2


def test_an_entry_that_could_not_be_made_is_not_there():
    def fail(path):
        one_kib(path)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        keep("a", fail)
    assert not list(cache_root().iterdir())


def test_arrays_come_back_mapped_and_writing_to_them_does_not_reach_the_disk():
    first = keep_array("a", lambda: np.arange(5))
    first[0] = 9
    again = keep_array("a", lambda: pytest.fail("made twice"))
    assert isinstance(again, np.memmap) and again.tolist() == [0, 1, 2, 3, 4]


def test_what_was_not_used_for_longest_goes_first(monkeypatch):
    now = time.time()
    for age, name in ((30, "old"), (20, "older than it looks"), (10, "young")):
        path = keep(name, one_kib)
        os.utime(path, (now - age, now - age))
    keep("old", one_kib)  # use makes it young
    monkeypatch.setenv("BITFRONTIER_CACHE_GIB", BOUND)
    cache._GIVEN.clear()  # as another process would find it
    keep("new", one_kib)
    assert names() == {"old", "young", "new"}


def test_entries_in_use_stay_beyond_the_bound(monkeypatch):
    monkeypatch.setenv("BITFRONTIER_CACHE_GIB", "0")
    paths = [keep(name, one_kib) for name in "abc"]
    assert all(path.is_dir() for path in paths)
    cache._GIVEN.clear()
    keep("d", one_kib)
    assert names() == {"d"}


def test_what_a_killed_process_left_unfinished_goes_after_a_day():
    yesterday = time.time() - 25 * 3600
    for name, when in (("new-yesterday", yesterday), ("new-now", time.time())):
        (cache_root() / name).mkdir()
        os.utime(cache_root() / name, (when, when))
    keep("a", one_kib)
    assert not (cache_root() / "new-yesterday").exists() and (cache_root() / "new-now").exists()


def keep_many(seed):
    for i in np.random.default_rng(seed).permutation(40):
        assert (keep(f"entry {i}", one_kib) / "data").is_file()


def test_processes_may_make_the_same_entries_at_the_same_time():
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(keep_many, range(4))
    assert names() == {f"entry {i}" for i in range(40)}
