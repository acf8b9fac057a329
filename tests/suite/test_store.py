import multiprocessing
import sqlite3
from dataclasses import fields, replace

import numpy as np
import pytest

from suite.store import (
    VERSION,
    CodedSize,
    Histogram,
    LayerRecord,
    OutlierRow,
    Record,
    SalienceRow,
    SmoothingRow,
    Spectrum,
    Store,
    WeightShape,
)


def record(cell="c0", **changed):
    """Every field filled, each float with all its digits in use."""
    values = {f.name: 1 / (3 + i) for i, f in enumerate(fields(Record))}
    texts = ("env", "model", "model_sha256", "data_sha256", "method", "recipe", "command", "started")
    values |= {name: f"some {name}" for name in texts}
    values |= {"cell": cell, "code": "0" * 16, "status": "ok", "reason": None, "model_bytes": 2**40, "seed": 0,
               "cache_bytes": 3, "fallbacks": ("a: damping 0.1", "b; dead channel, 3")}  # fmt: skip
    return Record(**values | changed)


def layer(name, n_bits=1234):
    values = {f.name: 1 / (7 + i) for i, f in enumerate(fields(LayerRecord))}
    return LayerRecord(**values | {"layer": name, "n_out": 5, "n_in": 7, "group_size": 4, "n_bits": n_bits})


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_put_is_read_back_exactly(tmp_path):
    nothing = {f.name: None for f in fields(Record) if f.default is None}
    bare = record("bare", **nothing, status="skipped", fallbacks=())
    with Store(tmp_path / "s.db") as store:
        store.put(record(), [layer("b"), layer("a")])
        store.put(replace(bare, reason="why not"))
        assert store.records() == [replace(bare, reason="why not"), record()]  # no bits come first
        assert store.layers(record()) == [layer("a"), layer("b")]
        assert store.layers(bare) == []


def test_a_put_replaces_the_record_of_its_cell_code_and_environment_and_no_other(tmp_path):
    with Store(tmp_path / "s.db") as store:
        for other in (record(), record(code="1" * 16), record(env="another"), record("c1")):
            store.put(other, [layer("a"), layer("b")])
        store.put(record(kl=0.5), [layer("a", n_bits=9)])
        assert len(store.records()) == 4
        assert store.finished("c0", "0" * 16, "some env") == record(kl=0.5)
        assert store.layers(record()) == [layer("a", n_bits=9)]  # the layer that is gone is gone
        assert store.layers(record("c1")) == [layer("a"), layer("b")]


def test_what_belongs_to_entropy_is_read_back_and_replaced_with_its_model_or_record(tmp_path):
    histogram = Histogram(stream=1, levels=np.array([-1.5, 1 / 3]), counts=np.array([2**40, 1]))
    texts = {f.name: f"some {f.name}" for f in fields(CodedSize)}
    size = CodedSize(**texts | {"bits": 4.25, "n_weights": 2**40, "n_bits": 1 / 7, "beside_bits": 3, "nmse": 1 / 9})
    shape = WeightShape(model="m", model_sha256="s", layer="a", n_weights=3, rms=1 / 3, counts=np.arange(1024))
    with Store(tmp_path / "s.db") as store:
        for n in (7, 1):
            store.put(record(), [], [replace(histogram, counts=histogram.counts + n)])
            store.put_rows(replace(size, n_bits=n / 7), replace(size, coder="ans"))
            store.put_shapes([shape])
        (found,), (same,) = store.histograms(record()), store.weight_shapes()
        assert (found.stream, found.levels.tolist()) == (1, [-1.5, 1 / 3])
        assert found.counts.tolist() == [2**40 + 1, 2] and found.counts.dtype == np.int64
        assert store.rows(CodedSize) == [replace(size, coder="ans"), size]
        assert (same.layer, same.n_weights, same.rms) == ("a", 3, 1 / 3)
        assert np.array_equal(same.counts, shape.counts)
        assert store.histograms(record("other")) == []


def row(kind, **changed):
    """Every field filled, each number with all its digits in use."""
    values = {f.name: f"some {f.name}" if f.type == "str" or f.type is str else 1 / (3 + i)
              for i, f in enumerate(fields(kind))}  # fmt: skip
    return kind(**values | {"model": "m", **changed})


def test_outliers_are_read_back_and_replaced_where_all_that_names_them_is_the_same(tmp_path):
    found = row(OutlierRow, kurtosis=float("inf"), massive=None)
    smooth, salient = row(SmoothingRow), row(SalienceRow)
    with Store(tmp_path / "s.db") as store:
        store.put_rows(replace(found, kurtosis=1.0), replace(smooth, error=1.0), replace(salient, share=1.0))
        store.put_rows(found, replace(found, transforms="()"), smooth, replace(smooth, alpha=0.0),
                       salient, replace(salient, criterion="another", share=float("nan")))  # fmt: skip
        assert store.rows(OutlierRow) == [replace(found, transforms="()"), found]
        assert store.rows(SmoothingRow) == [replace(smooth, alpha=0.0), smooth]
        assert store.rows(SalienceRow) == [replace(salient, criterion="another", share=None), salient]


@pytest.mark.parametrize("status, finished", [("ok", True), ("skipped", True), ("failed", False)])
def test_a_failed_record_does_not_count_as_finished(status, finished, tmp_path):
    with Store(tmp_path / "s.db") as store:
        store.put(record(status=status))
        assert (store.finished("c0", "0" * 16, "some env") is not None) is finished
        assert store.finished("c0", "1" * 16, "some env") is None


def test_infinite_figures_survive_and_undefined_ones_are_none(tmp_path):
    with Store(tmp_path / "s.db") as store:
        store.put(record(ppl=float("inf"), kl_se=float("nan")))
        found = store.records()[0]
    assert found.ppl == float("inf") and found.kl_se is None


def test_spectra_round_trip_under_the_models_and_the_datas_hash(tmp_path):
    eigenvalues = np.random.default_rng(0).exponential(size=7)
    spectra = [Spectrum(layer=n, n_out=5, variance=1 / 3, energy=2 / 3, eigenvalues=eigenvalues) for n in ("b", "a")]
    with Store(tmp_path / "s.db") as store:
        store.put_spectra("some model_sha256", "some data_sha256", spectra)
        store.put_spectra("another", "some data_sha256", spectra[:1])
        found = store.spectra(record())
    assert [s.layer for s in found] == ["a", "b"]
    assert all(np.array_equal(s.eigenvalues, eigenvalues) and s.variance == 1 / 3 and s.energy == 2 / 3 for s in found)


def test_a_failed_transaction_leaves_nothing_behind(tmp_path):
    with Store(tmp_path / "s.db") as store:
        store.put(record(), [layer("a")])
        with pytest.raises(sqlite3.Error):
            store.put(record(kl=0.5), [layer("b", n_bits=object())])
        assert store.records() == [record()] and store.layers(record()) == [layer("a")]
        store.put(record("c1"))  # and the store still works


def text_file(path):
    path.write_text("not a database, but long enough to be taken for one " * 40)


def foreign_database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("create table records (cell)")
    connection.close()


def newer_store(path):
    with Store(path) as store:
        store.put(record())
        store._connection.execute(f"pragma user_version = {VERSION + 1}")


@pytest.mark.parametrize("create", [True, False], ids=["writing", "reading"])
@pytest.mark.parametrize(
    "make, message",
    [
        (text_file, "is not a bitfrontier store: file is not a database"),
        (foreign_database, "is not a bitfrontier store: it is another program's SQLite file"),
        (newer_store, f"has store version {VERSION + 1}, this bitfrontier reads version {VERSION}"),
    ],
)
def test_a_file_that_is_not_a_store_of_ours_is_refused_and_left_as_it_was(make, message, create, tmp_path):
    make(tmp_path / "s.db")
    before = files(tmp_path)
    with pytest.raises(ValueError, match=message) as found:
        Store(tmp_path / "s.db", create=create)
    assert str(tmp_path / "s.db") in str(found.value)
    assert files(tmp_path) == before


def test_opening_to_read_neither_makes_nor_changes_a_store(tmp_path):
    with pytest.raises(ValueError, match="no store at"):
        Store(tmp_path / "s.db", create=False)
    assert not files(tmp_path)
    with Store(tmp_path / "s.db") as store:
        store.put(record())
    before = (tmp_path / "s.db").read_bytes()
    with Store(tmp_path / "s.db", create=False) as store:
        assert store.records() == [record()]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            store.put(record("c1"))
    assert (tmp_path / "s.db").read_bytes() == before


@pytest.mark.parametrize("begun", ["empty file", "no tables"])
def test_a_store_whose_making_was_interrupted_is_none_to_readers_and_is_made_by_the_next_writer(begun, tmp_path):
    path = tmp_path / "s.db"
    path.touch()
    if begun == "no tables":  # killed between the first page and the schema
        connection = sqlite3.connect(path)
        connection.execute("pragma journal_mode = wal")
        connection.close()
        assert path.stat().st_size > 0
    with pytest.raises(ValueError, match="no store at"):
        Store(path, create=False)
    with Store(path) as store:
        store.put(record())
        assert store.records() == [record()]


def test_a_reader_sees_what_a_writer_has_committed_while_both_are_open(tmp_path):
    with Store(tmp_path / "s.db") as writer, Store(tmp_path / "s.db", create=False) as reader:
        assert reader.records() == []
        writer.put(record())
        assert reader.records() == [record()]


def write_many(path, name):
    with Store(path) as store:
        for i in range(20):
            store.put(record(f"{name}-{i}"), [layer("a"), layer("b")])
            store.put(record("shared"), [layer("a")])


def test_processes_may_make_and_write_one_store_at_the_same_time(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(tmp_path / "s.db", name)) for name in "abcd"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    with Store(tmp_path / "s.db", create=False) as store:
        assert len(store.records()) == 4 * 20 + 1
        assert store.layers(record("c-19")) == [layer("a"), layer("b")]
        assert store.layers(record("shared")) == [layer("a")]


def make_stores(barrier, folder, errors):
    for i in range(60):
        barrier.wait()
        try:
            Store(folder / f"{i}.db").close()
        except ValueError as error:
            errors.put(str(error))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_many_processes_may_make_one_store_at_the_same_moment(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, errors = context.Barrier(4), context.SimpleQueue()
    started = [context.Process(target=make_stores, args=(barrier, tmp_path, errors)) for _ in range(4)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert errors.empty() and all(process.exitcode == 0 for process in started)
