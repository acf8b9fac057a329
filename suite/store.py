"""The result store: one SQLite file, one transaction per finished cell. Imports no torch.

Write-ahead log and full synchronous mode: a record is there whole or not at all, whatever kills the process. Rows are
only ever replaced by rows of the same key, so a run that is started again ends where an undisturbed one does.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from suite.findings import PointRow, VerdictRow
from suite.rows import (
    VOLATILE,
    CodedSize,
    Histogram,
    LayerRecord,
    MemoryRow,
    OutlierRow,
    ReasoningRow,
    Record,
    RetentionRow,
    SalienceRow,
    ScalingRow,
    SmoothingRow,
    Spectrum,
    SpeedRow,
    Status,
    TrainingRow,
    WeightShape,
)
from suite.store_file import APPLICATION, VERSION, holds_store, open_to_read, set_write_ahead

__all__ = [
    "VERSION", "VOLATILE", "CodedSize", "Histogram", "LayerRecord", "MemoryRow", "OutlierRow", "Record", "RetentionRow",
    "SalienceRow", "ScalingRow", "SmoothingRow", "Spectrum", "SpeedRow", "Status", "Store", "TrainingRow",
    "WeightShape", "holds_store",
]  # fmt: skip


Row = TypeVar("Row")


def _columns(kind: type) -> str:  # quoted: "group" means something to SQL
    return ", ".join(f'"{f.name}"' for f in fields(kind))


_RECORD = [f.name for f in fields(Record)]
_LAYER = [f.name for f in fields(LayerRecord)]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of plain values: its name, what a row is, the columns that name one, and the order it is read in."""

    name: str
    row: type
    key: str
    order: str

    @property
    def sql(self) -> str:
        """The statement that makes it."""
        return f"create table if not exists {self.name} ({_columns(self.row)}, primary key ({self.key}))"


_CELL = "cell, code, env"
TABLES = (
    Table("sizes", CodedSize, "model, model_sha256, layer, recipe, format, coder",
          "model, model_sha256, format, bits, recipe, coder, layer"),
    Table("outliers", OutlierRow, "model, model_sha256, data_sha256, layer, transforms, tensor",
          "model, model_sha256, data_sha256, transforms, tensor, layer"),
    Table("smoothing", SmoothingRow, "model, model_sha256, data_sha256, layer, alpha, bits",
          "model, model_sha256, data_sha256, layer, bits, alpha"),
    Table("salience", SalienceRow, "model, model_sha256, data_sha256, layer, transforms, criterion, fraction, bits",
          "model, model_sha256, data_sha256, transforms, criterion, layer, bits, fraction"),
    Table("speeds", SpeedRow, "model_sha256, device, threads, product, prompt, tokens, code, env",
          "model, model_sha256, device, threads, product, prompt, tokens, code, env"),
    Table("trainings", TrainingRow, _CELL, _CELL),
    Table("scaling", ScalingRow, _CELL, f"data_sha256, seed, level, hidden, method, bits, {_CELL}"),
    Table("reasoning", ReasoningRow, "model_sha256, problems_sha256, steps, code, env",
          "base_sha256, model, model_sha256, steps, problems_sha256, code, env"),
    Table("memory", MemoryRow,
          "model, model_sha256, recipe, kind, rows, length, width, checkpointing, paged, code, env",
          "model, model_sha256, length, rows, width, method, bits, recipe, paged, checkpointing, kind, code, env"),
    Table("retention", RetentionRow, f"{_CELL}, text_sha256", f"{_CELL}, text_sha256"),
    Table("points", PointRow, "experiment, series, place, seed, effort, model, code, env",
          "experiment, model, effort, seed, code, env, series, place"),
    Table("verdicts", VerdictRow, "claim, model, effort, code, env", "claim, model, effort, code, env, started"),
)  # fmt: skip
_SCHEMA = f"""
create table records ({", ".join(_RECORD)}, primary key (cell, code, env));
create table layers (cell, code, env, {", ".join(_LAYER)}, primary key (cell, code, env, layer));
create table spectra (model_sha256, data_sha256, layer, n_out, variance, energy, eigenvalues,
                      primary key (model_sha256, data_sha256, layer));
create table histograms (cell, code, env, stream, levels, counts, primary key (cell, code, env, stream));
create table shapes (model, model_sha256, layer, n_weights, rms, counts, primary key (model, model_sha256, layer));
pragma application_id = {APPLICATION};
pragma user_version = {VERSION};
"""


class Store:
    """An open store. `create=False` opens for reading alone, and refuses a path where there is none.

    Raises `ValueError` if the file is not a store, or one of another version; it is then left as it was.
    """

    def __init__(self, path: Path | str, *, create: bool = True):
        self.path = Path(path)
        if not holds_store(self.path) and not create:
            raise ValueError(f"no store at {self.path}")
        try:
            self._connection = self._open_to_write() if create else open_to_read(self.path)
        except sqlite3.Error as error:
            raise ValueError(f"cannot open a store at {self.path}: {error}") from error

    def _open_to_write(self) -> sqlite3.Connection:
        self._connection = connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        set_write_ahead(connection)
        connection.execute("pragma synchronous = full")
        with self._transaction():
            if not connection.execute("pragma user_version").fetchone()[0]:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    connection.execute(statement)
            for table in TABLES:  # stores of this version were made before there were some of them
                connection.execute(table.sql)
        return connection

    def close(self) -> None:
        """Close the file; the write-ahead log is folded in by the last one to close."""
        self._connection.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._connection.execute("rollback")
            raise
        self._connection.execute("commit")

    def finished(self, cell: str, code: str, env: str) -> Record | None:
        """The record of this cell, code version and environment, unless there is none or it failed."""
        found = self._select("where cell = ? and code = ? and env = ? and status != 'failed'", (cell, code, env))
        return next(found, None)

    def records(self) -> list[Record]:
        """All records, ordered by model, data, method, bits and recipe: the same store gives the same list."""
        order = "order by model, model_sha256, data_sha256, method, bits, recipe, seed, cell, code, env"
        return list(self._select(order, ()))

    def _select(self, clause: str, arguments: tuple) -> Iterator[Record]:
        for row in self._connection.execute(f"select {', '.join(_RECORD)} from records {clause}", arguments):
            values: dict[str, Any] = dict(zip(_RECORD, row, strict=True))
            values["fallbacks"] = tuple(json.loads(values["fallbacks"]))
            yield Record(**values)

    def layers(self, record: Record) -> list[LayerRecord]:
        """The layers of one record, in the order of their names."""
        query = f"select {', '.join(_LAYER)} from layers where cell = ? and code = ? and env = ? order by layer"
        rows = self._connection.execute(query, (record.cell, record.code, record.env))
        return [LayerRecord(**dict(zip(_LAYER, row, strict=True))) for row in rows]

    def spectra(self, record: Record) -> list[Spectrum]:
        """The spectra of the layers of the model and data that a record was measured on, by layer name."""
        query = """select layer, n_out, variance, energy, eigenvalues from spectra
                   where model_sha256 = ? and data_sha256 = ? order by layer"""
        rows = self._connection.execute(query, (record.model_sha256, record.data_sha256))
        return [Spectrum(layer=layer, n_out=n_out, variance=variance, energy=energy, eigenvalues=np.frombuffer(blob))
                for layer, n_out, variance, energy, blob in rows]  # fmt: skip

    def histograms(self, record: Record) -> list[Histogram]:
        """How often codes occur in one record's blocks, by alphabet."""
        query = "select stream, levels, counts from histograms where cell = ? and code = ? and env = ? order by stream"
        rows = self._connection.execute(query, (record.cell, record.code, record.env))
        return [Histogram(stream=stream, levels=np.frombuffer(levels), counts=np.frombuffer(counts, dtype=np.int64))
                for stream, levels, counts in rows]  # fmt: skip

    def weight_shapes(self) -> list[WeightShape]:
        """How all matrices' weights are distributed, by model and layer."""
        rows = self._connection.execute("select * from shapes order by model, model_sha256, layer")
        return [WeightShape(model=model, model_sha256=sha256, layer=layer, n_weights=n, rms=rms,
                            counts=np.frombuffer(counts, dtype=np.int64))
                for model, sha256, layer, n, rms, counts in rows]  # fmt: skip

    def rows(self, kind: type[Row]) -> list[Row]:
        """All rows of a kind, in an order that depends on nothing but them; none where a store has no such table."""
        (table,) = (table for table in TABLES if table.row is kind)
        if not self._connection.execute("select 1 from sqlite_master where name = ?", (table.name,)).fetchone():
            return []
        read = [bool if field.type is bool else None for field in fields(kind)]  # type: ignore[arg-type]
        query = f"select {_columns(kind)} from {table.name} order by {table.order}"
        return [kind(**{field.name: value if of is None else of(value)
                        for field, of, value in zip(fields(kind), read, row, strict=True)})  # type: ignore[arg-type]
                for row in self._connection.execute(query)]  # fmt: skip

    def put_rows(self, *rows: Any) -> None:
        """Write rows of any kinds of `TABLES`, each in place of the one with the same key, all of them or none."""
        with self._transaction():
            for row in rows:
                (table,) = (table for table in TABLES if table.row is type(row))
                self._insert(table.name, [list(astuple(row))])

    def put(
        self,
        record: Record,
        layers: Iterable[LayerRecord] = (),
        histograms: Iterable[Histogram] = (),
        training: TrainingRow | None = None,
        retention: RetentionRow | None = None,
    ) -> None:
        """Write a cell's record with what belongs to it, replacing those of the same cell, code and environment.

        What it has forgotten of other texts than the one of `retention` stays, unless it failed or was skipped.
        """
        key = (record.cell, record.code, record.env)
        values = [getattr(record, name) for name in _RECORD]
        values[_RECORD.index("fallbacks")] = json.dumps(record.fallbacks)
        with self._transaction():
            for table in ("layers", "histograms", "trainings", *(() if record.status == "ok" else ("retention",))):
                self._connection.execute(f"delete from {table} where cell = ? and code = ? and env = ?", key)
            self._insert("records", [values])
            self._insert("layers", [[*key, *astuple(layer)] for layer in layers])
            self._insert("histograms", [[*key, h.stream, _blob(h.levels, "<f8"), _blob(h.counts, "<i8")]
                                        for h in histograms])  # fmt: skip
            self._insert("trainings", [] if training is None else [list(astuple(training))])
            self._insert("retention", [] if retention is None else [list(astuple(retention))])

    def put_spectra(self, model_sha256: str, data_sha256: str, spectra: Iterable[Spectrum]) -> None:
        """Write the spectra of a model's layers under the calibration data they were measured on."""
        rows = [[model_sha256, data_sha256, s.layer, s.n_out, s.variance, s.energy,
                 _blob(s.eigenvalues, "<f8")] for s in spectra]  # fmt: skip
        with self._transaction():
            self._insert("spectra", rows)

    def put_shapes(self, shapes: Iterable[WeightShape]) -> None:
        """Write how a model's weights are distributed, replacing the same model's."""
        with self._transaction():
            self._insert("shapes", [[s.model, s.model_sha256, s.layer, s.n_weights, s.rms, _blob(s.counts, "<i8")]
                                    for s in shapes])  # fmt: skip

    def put_speed(self, row: SpeedRow) -> None:
        """Write how fast a packed model generated, and its rate of decoding into the records of the same model.

        These are the records of the packed model and of the cell that it was written by, of this code.
        """
        with self._transaction():
            self._insert("speeds", [list(astuple(row))])
            self._connection.execute(
                """update records set tokens_per_second = ? where model_sha256 in (?, ?) and recipe = ? and bits is ?
                   and seed = ? and code = ?""",
                (row.decode, row.model_sha256, row.base_sha256, row.recipe, row.bits, row.seed, row.code),
            )

    def _insert(self, table: str, rows: list[list]) -> None:
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            self._connection.executemany(f"insert or replace into {table} values ({marks})", rows)


def _blob(values: np.ndarray, kind: str) -> bytes:
    return np.ascontiguousarray(values, dtype=kind).tobytes()
