"""The result store: one SQLite file, one transaction per finished cell. Imports no torch.

Write-ahead log and full synchronous mode: a record is there whole or not at all, whatever kills the process. Rows are
only ever replaced by rows of the same key, so a run that is started again ends where an undisturbed one does.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

VERSION = 3
_TRIES = 200  # ten seconds
_APPLICATION = 0x62667231  # "bfr1": tells our files from other SQLite files

Status = Literal["ok", "skipped", "failed"]
VOLATILE = ("seconds", "peak_mib", "tokens_per_second", "started")  # everything else is reproducible bit for bit


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a cell produced, one field per column of the store; a measurement that does not apply is None.

    Rates (`bpw...`) are bits per weight of the decoder blocks' linear layers. `ppl_se`, `kl_se` and `top1_se` are
    standard errors of the paired difference to the unquantized model on the same tokens, clustered by source file
    where there is one, else by row. `kl` is in nats.
    """

    cell: str
    code: str
    env: str
    status: Status
    reason: str | None = None
    model: str
    model_sha256: str
    data_sha256: str
    method: str
    recipe: str
    bits: float | None = None
    bpw: float | None = None
    bpw_entropy: float | None = None
    bpw_coded: float | None = None
    model_bytes: int | None = None
    ppl: float | None = None
    ppl_se: float | None = None
    ppl_base: float | None = None
    kl: float | None = None
    kl_se: float | None = None
    kl_p99: float | None = None
    top1: float | None = None
    top1_se: float | None = None
    nmse: float | None = None
    hnmse: float | None = None
    bound: float | None = None
    accuracy: float | None = None
    cache_bytes: int | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    peak_mib: float | None = None
    seed: int
    fallbacks: tuple[str, ...] = ()
    command: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """One linear layer of one cell: its shape, the group that was really used, exact bits, errors against W.

    `n_bits` are stored; `entropy_bits` and `coded_bits` are with the codes at their entropy, and really entropy-coded.

    The errors are relative to `weight_energy` = |W|^2 and `output_energy` = tr(W H W^T), by which layers are pooled.
    """

    layer: str
    n_out: int
    n_in: int
    group_size: int
    n_bits: int
    entropy_bits: float
    coded_bits: int
    nmse: float
    hnmse: float
    weight_energy: float
    output_energy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """What a rate-distortion floor of one layer needs: the eigenvalues of H = X^T X / n, Var W and tr(W H W^T)."""

    layer: str
    n_out: int
    variance: float
    energy: float
    eigenvalues: np.ndarray  # (n_in,), float64, ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How often the codes of one alphabet occur in a cell's decoder blocks; most grids have one alphabet.

    `levels` (n,), ascending, are what the codes stand for in units of their scale, `counts` (n,) how many there are.
    """

    stream: int
    levels: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedSize:
    """What one matrix of a model takes in one number format under one coder.

    `format` is "fp32", "bf16" or "fp8", or a method's name with its `recipe`, nominal `bits` and `group` ("32", "row",
    "tensor", or "" where it has none). `coder` is "fixed", "entropy" (of order 0), a coder's name, or for floating
    point the part, "sign", "exponent" or "mantissa", whose entropy it is. `n_bits` is all that is left, of which
    `beside_bits` (scales and the like) are not coded; of a part, that part's alone.
    """

    model: str
    model_sha256: str
    layer: str
    format: str
    recipe: str
    bits: float
    group: str
    coder: str
    n_weights: int
    n_bits: float
    beside_bits: int
    nmse: float
    code: str
    env: str
    command: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightShape:
    """How one matrix's weights are distributed: counts (1024,) of w / rms over [-16, 16], the outer bins open."""

    model: str
    model_sha256: str
    layer: str
    n_weights: int
    rms: float
    counts: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierRow:
    """How far from even a layer's inputs or weights are, in `coordinates`, a short name for a recipe's `transforms`.

    `tensor` is "inputs", whose `layer` is the first that reads them, or "weights". The figures are those of
    `suite.outlier_metrics`, `incoherence` of the inputs that of their Gram matrix's eigenvectors; `normal` and
    `massive` count the channels, of `n_channels`, that hold such outliers, inputs' alone. None is not a number.
    """

    model: str
    model_sha256: str
    data_sha256: str
    layer: str
    coordinates: str
    transforms: str
    tensor: Literal["inputs", "weights"]
    n_channels: int
    kurtosis: float | None
    max_to_median: float | None
    incoherence: float | None
    dynamic_range: float | None
    normal: int | None
    massive: int | None
    code: str
    env: str
    command: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothingRow:
    """Dynamic ranges of a site's inputs and weights after SmoothQuant's scaling at `alpha`, and the error of rounding.

    `layer` is the first of the site; `error` is the output error, relative, with both at `bits`.
    """

    model: str
    model_sha256: str
    data_sha256: str
    layer: str
    alpha: float
    bits: int
    inputs: float | None
    weights: float | None
    error: float | None
    code: str
    env: str
    command: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SalienceRow:
    """The `share` of a layer's output error at `bits` that the `protected` part of weights or channels carries.

    They are the first by `criterion`, in about the `fraction` asked for; `protected` is the fraction that it is.
    """

    model: str
    model_sha256: str
    data_sha256: str
    layer: str
    coordinates: str
    transforms: str
    criterion: str
    fraction: float
    bits: int
    protected: float
    share: float | None
    code: str
    env: str
    command: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRow:
    """How fast a packed model generated, in turns with the unquantized one in bfloat16, whose figures are `base_...`.

    `product` is what was asked for, and `products` JSON of how many layers took which, with the measurements that
    decided it. Rates are tokens per second, of a prompt (`prefill`) and of one token after the other (`decode`), and
    like ratios to the base, within a round, they are medians over `rounds` with quartiles `_low` and `_high`.
    `token_bytes` are read for a token: weights, and keys and values in the middle of the text; `bandwidth`, bytes per
    second, is that of reading memory, measured in between. `overhead` is what packed layers take beside their products,
    as a share of these. What needs a base that is not to be had is None.
    """

    model: str
    model_sha256: str
    base_sha256: str
    method: str
    recipe: str
    bits: float | None
    seed: int
    device: str
    threads: int
    product: str
    products: str
    prompt: int
    tokens: int
    rounds: int
    prefill: float
    prefill_low: float
    prefill_high: float
    decode: float
    decode_low: float
    decode_high: float
    base_prefill: float | None
    base_decode: float | None
    prefill_ratio: float | None
    decode_ratio: float | None
    decode_ratio_low: float | None
    decode_ratio_high: float | None
    token_bytes: int
    base_token_bytes: int | None
    bandwidth: float
    overhead: float | None
    fallbacks: str
    code: str
    env: str
    command: str
    started: str

    @property
    def roofline(self) -> float:
        """Tokens per second that the bandwidth allows where no cache holds weights."""
        return self.bandwidth / self.token_bytes


def _columns(kind: type) -> str:
    return ", ".join(f'"{f.name}"' for f in fields(kind))


_RECORD = [f.name for f in fields(Record)]
_LAYER = [f.name for f in fields(LayerRecord)]
_SPEEDS = f"""create table if not exists speeds ({_columns(SpeedRow)},
                            primary key (model_sha256, device, threads, product, prompt, tokens, code, env))"""
_SIZE = [f'"{f.name}"' for f in fields(CodedSize)]  # quoted: "group" means something to SQL
_SCHEMA = f"""
create table records ({", ".join(_RECORD)}, primary key (cell, code, env));
create table layers (cell, code, env, {", ".join(_LAYER)}, primary key (cell, code, env, layer));
create table spectra (model_sha256, data_sha256, layer, n_out, variance, energy, eigenvalues,
                      primary key (model_sha256, data_sha256, layer));
create table histograms (cell, code, env, stream, levels, counts, primary key (cell, code, env, stream));
create table sizes ({", ".join(_SIZE)}, primary key (model, model_sha256, layer, recipe, format, coder));
create table shapes (model, model_sha256, layer, n_weights, rms, counts, primary key (model, model_sha256, layer));
create table outliers ({_columns(OutlierRow)},
                       primary key (model, model_sha256, data_sha256, layer, transforms, tensor));
create table smoothing ({_columns(SmoothingRow)},
                        primary key (model, model_sha256, data_sha256, layer, alpha, bits));
create table salience ({_columns(SalienceRow)},
                       primary key (model, model_sha256, data_sha256, layer, transforms, criterion, fraction, bits));
pragma application_id = {_APPLICATION};
pragma user_version = {VERSION};
"""


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=60)


def _set_write_ahead(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on; SQLite does not wait its timeout here while another process is doing the same."""
    for left in reversed(range(_TRIES)):
        try:
            connection.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError:
            if not left:
                raise
            time.sleep(0.05)


def _open_to_read(path: Path) -> sqlite3.Connection:
    """Without leave to write, yet such that closing clears away the log's files, which `mode=ro` leaves lying about.

    A directory that cannot be written to holds no write-ahead log to be read either.
    """
    if not os.access(path.parent, os.W_OK):
        return _connect(path, "immutable=1")
    connection = _connect(path, "mode=rw")
    connection.execute("pragma query_only = on")
    return connection


def _check(path: Path) -> bool:
    """Read, without touching anything, what the file says it is; False for a store that was begun and never made."""
    logged = path.with_name(f"{path.name}-wal").exists()
    with closing(_connect(path, "mode=ro" if logged else "immutable=1")) as connection:
        try:
            application = connection.execute("pragma application_id").fetchone()[0]
            version = connection.execute("pragma user_version").fetchone()[0]
            tables = connection.execute("select count(*) from sqlite_master").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} is not a bitfrontier store: {error}") from error
    begun = (application, version, tables) == (0, 0, 0)
    if application != _APPLICATION and not begun:
        raise ValueError(f"{path} is not a bitfrontier store: it is another program's SQLite file")
    if version != VERSION and not begun:
        raise ValueError(f"{path} has store version {version}, this bitfrontier reads version {VERSION}")
    return not begun


def holds_store(path: Path) -> bool:
    """Whether there is a store at `path`; a file that a killed run left before its first record is none.

    Raises `ValueError` for a file that is something else, or a store of another version.
    """
    try:
        return path.is_file() and path.stat().st_size > 0 and _check(path)
    except sqlite3.Error as error:
        raise ValueError(f"cannot open a store at {path}: {error}") from error


class Store:
    """An open store. `create=False` opens for reading alone, and refuses a path where there is none.

    Raises `ValueError` if the file is not a store, or one of another version; it is then left as it was.
    """

    def __init__(self, path: Path | str, *, create: bool = True):
        self.path = Path(path)
        if not holds_store(self.path) and not create:
            raise ValueError(f"no store at {self.path}")
        try:
            self._connection = self._open_to_write() if create else _open_to_read(self.path)
        except sqlite3.Error as error:
            raise ValueError(f"cannot open a store at {self.path}: {error}") from error

    def _open_to_write(self) -> sqlite3.Connection:
        self._connection = connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        _set_write_ahead(connection)
        connection.execute("pragma synchronous = full")
        with self._transaction():
            if not connection.execute("pragma user_version").fetchone()[0]:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    connection.execute(statement)
            connection.execute(_SPEEDS)  # stores of this version were made before there was a runtime
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

    def coded_sizes(self) -> list[CodedSize]:
        """All coded sizes, in an order that depends on nothing but them."""
        order = "order by model, model_sha256, format, bits, recipe, coder, layer"
        rows = self._connection.execute(f"select {', '.join(_SIZE)} from sizes {order}")
        names = [f.name for f in fields(CodedSize)]
        return [CodedSize(**dict(zip(names, row, strict=True))) for row in rows]

    def weight_shapes(self) -> list[WeightShape]:
        """How all matrices' weights are distributed, by model and layer."""
        rows = self._connection.execute("select * from shapes order by model, model_sha256, layer")
        return [WeightShape(model=model, model_sha256=sha256, layer=layer, n_weights=n, rms=rms,
                            counts=np.frombuffer(counts, dtype=np.int64))
                for model, sha256, layer, n, rms, counts in rows]  # fmt: skip

    def outliers(self) -> list[OutlierRow]:
        """How far from even all measured inputs and weights are."""
        order = "model, model_sha256, data_sha256, transforms, tensor, layer"
        return [OutlierRow(**row) for row in self._flat("outliers", OutlierRow, order)]

    def smoothing(self) -> list[SmoothingRow]:
        """Ranges and errors over SmoothQuant's alpha."""
        order = "model, model_sha256, data_sha256, layer, bits, alpha"
        return [SmoothingRow(**row) for row in self._flat("smoothing", SmoothingRow, order)]

    def salience(self) -> list[SalienceRow]:
        """Which share of the error the most salient weights and channels carry."""
        order = "model, model_sha256, data_sha256, transforms, criterion, layer, bits, fraction"
        return [SalienceRow(**row) for row in self._flat("salience", SalienceRow, order)]

    def speeds(self) -> list[SpeedRow]:
        """How fast packed models generated."""
        if not self._connection.execute("select 1 from sqlite_master where name = 'speeds'").fetchone():
            return []
        order = "model, model_sha256, device, threads, product, prompt, tokens, code, env"
        return [SpeedRow(**row) for row in self._flat("speeds", SpeedRow, order)]

    def _flat(self, table: str, kind: type, order: str) -> Iterator[dict[str, Any]]:
        names = [f.name for f in fields(kind)]
        for row in self._connection.execute(f"select {_columns(kind)} from {table} order by {order}"):
            yield dict(zip(names, row, strict=True))

    def put(
        self, record: Record, layers: Iterable[LayerRecord] = (), histograms: Iterable[Histogram] = ()
    ) -> None:  # fmt: skip
        """Write a cell's record with what belongs to it, replacing those of the same cell, code and environment."""
        key = (record.cell, record.code, record.env)
        values = [getattr(record, name) for name in _RECORD]
        values[_RECORD.index("fallbacks")] = json.dumps(record.fallbacks)
        with self._transaction():
            for table in ("layers", "histograms"):
                self._connection.execute(f"delete from {table} where cell = ? and code = ? and env = ?", key)
            self._insert("records", [values])
            self._insert("layers", [[*key, *astuple(layer)] for layer in layers])
            self._insert("histograms", [[*key, h.stream, _blob(h.levels, "<f8"), _blob(h.counts, "<i8")]
                                        for h in histograms])  # fmt: skip

    def put_spectra(self, model_sha256: str, data_sha256: str, spectra: Iterable[Spectrum]) -> None:
        """Write the spectra of a model's layers under the calibration data they were measured on."""
        rows = [[model_sha256, data_sha256, s.layer, s.n_out, s.variance, s.energy,
                 _blob(s.eigenvalues, "<f8")] for s in spectra]  # fmt: skip
        with self._transaction():
            self._insert("spectra", rows)

    def put_sizes(self, sizes: Iterable[CodedSize], shapes: Iterable[WeightShape]) -> None:
        """Write what a model's matrices take, and how its weights are distributed, replacing the same model's."""
        with self._transaction():
            self._insert("sizes", [list(astuple(size)) for size in sizes])
            self._insert("shapes", [[s.model, s.model_sha256, s.layer, s.n_weights, s.rms, _blob(s.counts, "<i8")]
                                    for s in shapes])  # fmt: skip

    def put_outliers(
        self, outliers: Iterable[OutlierRow], smoothing: Iterable[SmoothingRow], salience: Iterable[SalienceRow]
    ) -> None:
        """Write a model's figures of outliers, replacing those of the same model, data, layers and transforms."""
        with self._transaction():
            for table, found in (("outliers", outliers), ("smoothing", smoothing), ("salience", salience)):
                self._insert(table, [list(astuple(row)) for row in found])

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
