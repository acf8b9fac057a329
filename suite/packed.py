"""A packed model on disk: what `model_bytes` counts, written block by block.

    DIR/bitfrontier.json        the header: what the model is, and everything that the payloads do not say
    DIR/block-00000.safetensors ..., DIR/rest.safetensors
    DIR/about/                  not part of the model and not counted: tokenizer, and where all this came from

The files directly in DIR are the model, and the sum of their sizes is `model_bytes`. A quantized matrix is its payload,
as bytes, under the tensor's own name; everything else has the type that the checkpoint stores it in. The header is JSON
with sorted keys and no spaces, names every shard with its SHA-256, and ends in its own: the SHA-256 of the same text
without that field. The same cell gives the same bytes, on any machine and from any directory.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from suite.activations import Span
from suite.blockwise import QuantizedBlock
from suite.export import FORMAT, TOKENIZER, block_tensors, copy_small, rest_of
from suite.kv_cache.codec import named_tables
from suite.models.checkpoint import Checkpoint, is_shipped, place_of
from suite.quantized import Quantized
from suite.store import VOLATILE, LayerRecord, Record
from suite.transforms import map_header

VERSION = 3
CACHE_TABLES = "self_attn.cache"  # of a block: under this name lies what its cache has learned
HEADER, ABOUT, PROVENANCE = "bitfrontier.json", "about", "provenance.json"
_KIND = "bitfrontier packed model"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}
_UNKNOWN = "0" * 64  # a hash that only has to take its room


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a packed model is.

    `layers` are the headers of quantized matrices by name; `ranges` what static activation scales of layers are made
    for, the largest magnitude or both ends; `maps` what the inputs of a site pass through at run time, by the name
    of its first layer; `shards` the SHA-256 of every file by its name.
    """

    method: str
    recipe: str
    bits: float | None
    seed: int
    model_sha256: str
    calibration_sha256: str
    tied: bool
    config: dict[str, Any]
    layers: dict[str, dict[str, Any]]
    ranges: dict[str, Span]
    maps: dict[str, list[dict[str, Any]]]
    shards: dict[str, str]

    @property
    def sha256(self) -> str:
        """A hash of the header, and by its shards' of the whole model."""
        return hashlib.sha256(_text(self._fields).encode()).hexdigest()

    @property
    def text(self) -> str:
        """The header's file."""
        return _text({**self._fields, "sha256": self.sha256})

    @property
    def _fields(self) -> dict[str, Any]:
        return {"format": _KIND, "version": VERSION, **asdict(self)}

    @classmethod
    def read(cls, path: Path, name: str) -> "Header":
        """The header of a packed directory; `ValueError` in one line for one that is damaged or of another version."""
        try:
            found = json.loads((path / HEADER).read_text(encoding="utf8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}: {HEADER} cannot be read: {error}") from error
        if not isinstance(found, dict) or found.pop("format", None) != _KIND:
            raise ValueError(f"{name}: {HEADER} is not the header of a packed model")
        version, sha256 = found.pop("version", None), found.pop("sha256", None)
        if version != VERSION:
            raise ValueError(f"{name}: {HEADER} has format version {version!r}, this bitfrontier reads {VERSION}")
        try:
            header = cls(**found)
        except TypeError as error:
            raise ValueError(f"{name}: {HEADER} does not have the fields of version {VERSION}: {error}") from error
        if header.sha256 != sha256:
            raise ValueError(f"{name}: {HEADER} is damaged: its SHA-256 is {header.sha256}, it says {sha256}")
        return header


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def holds_packed(path: Path) -> bool:
    """Whether there is a packed model in this directory."""
    return (path / HEADER).is_file()


def check_places(save: Path | None, export: Path | None, model: str) -> None:
    """Raise `ValueError` for output directories that are the model's own, each other's, or of the other format."""
    own = Path(place_of(model)[0])
    for path in filter(None, (save, export)):
        if path.is_dir() and own.is_dir() and path.samefile(own):
            raise ValueError(f"cannot write {path}: the model itself is there")
    if save is not None and save == export:
        raise ValueError(f"cannot write {save}: asked for both the packed and the dequantized model")
    if save is not None and (save / "config.json").exists():
        raise ValueError(f"cannot write {save}: a model in Hugging Face format is there")
    if export is not None and holds_packed(export):
        raise ValueError(f"cannot write {export}: a packed model is there")


class Packing:
    """Packs a model block by block: writes it into the directory `path`, or, for None, finds out its size alone."""

    def __init__(self, checkpoint: Checkpoint, path: Path | None):
        self._checkpoint, self._path = checkpoint, path
        self._layers: dict[str, dict[str, Any]] = {}
        self._ranges: dict[str, Span] = {}
        self._maps: dict[str, list[dict[str, Any]]] = {}
        self._shards: dict[str, str] = {}
        self._n_bytes = 0
        if path is not None:
            _clear(path)

    def add_block(self, i: int, block: nn.Module, done: QuantizedBlock) -> None:
        """Pack block `i` as it was quantized."""
        files, full_name = self._checkpoint.files, self._checkpoint.architecture.full_name
        shapes = {full_name(i, key): tuple(tensor.shape) for key, tensor in block.state_dict().items()}
        contents = {key: (files[key].kind, shape) for key, shape in shapes.items()}
        tables = named_tables(done.tables, full_name(i, CACHE_TABLES))
        contents |= {key: ("F16", tuple(tensor.shape)) for key, tensor in tables.items()}
        tensors = {} if self._path is None else {**dict(block_tensors(self._checkpoint, i, block)), **tables}
        self._ranges |= done.ranges
        self._maps |= {name: [map_header(m) for m in maps] for name, maps in done.maps.items()}
        self._add(f"block-{i:05d}.safetensors", contents, tensors, done.layers)

    def add_rest(self, layers: Mapping[str, Quantized]) -> None:
        """Pack embedding, final norm and head, of which `layers` are quantized."""
        rest = rest_of(self._checkpoint)
        tensors = {} if self._path is None else {key: self._checkpoint.tensor(key) for key in rest}
        self._add("rest.safetensors", {key: (s.kind, s.shape) for key, s in rest.items()}, tensors, layers)

    def _add(
        self,
        shard: str,
        contents: dict[str, tuple[str, tuple[int, ...]]],
        tensors: dict[str, torch.Tensor],
        layers: Mapping[str, Quantized],
    ) -> None:
        self._layers |= {name: found.header() for name, found in layers.items()}
        payloads = {f"{name}.weight": found for name, found in layers.items()}
        contents |= {key: ("U8", (-(-found.n_bits // 8),)) for key, found in payloads.items()}
        self._n_bytes += _file_bytes(contents)
        self._shards[shard] = _UNKNOWN
        if self._path is not None:
            for key, found in payloads.items():
                tensors[key] = torch.frombuffer(bytearray(found.to_bytes()), dtype=torch.uint8)
            save_file(tensors, self._path / shard, FORMAT)
            self._shards[shard] = sha256_of(self._path / shard)

    def header(
        self, *, method: str, recipe: str, bits: float | None, seed: int, model_sha256: str, calibration_sha256: str
    ) -> Header:
        """The header of what was added."""
        checkpoint = self._checkpoint
        config = json.loads(json.dumps(checkpoint.configuration))  # its keys as the header will have them: texts
        return Header(
            method=method, recipe=recipe, bits=bits, seed=seed, model_sha256=model_sha256,
            calibration_sha256=calibration_sha256, tied=checkpoint.tied, config=config,
            layers=self._layers, ranges=self._ranges, maps=self._maps, shards=self._shards,
        )  # fmt: skip

    def n_bytes(self, header: Header) -> int:
        """`model_bytes`: the size of all shards and the header."""
        return self._n_bytes + len(header.text.encode())

    def finish(self, header: Header, record: Record, layers: tuple[LayerRecord, ...]) -> None:
        """Write what is beside the model, and then the header, which makes the directory a packed model."""
        if self._path is not None:
            self._describe(self._path / ABOUT, record, layers)
            (self._path / HEADER).write_text(header.text, encoding="utf8")

    def _describe(self, about: Path, record: Record, layers: tuple[LayerRecord, ...]) -> None:
        """Tokenizer, the base model's place, and what was measured."""
        about.mkdir(exist_ok=True)
        copy_small(self._checkpoint.path, about, TOKENIZER)
        base = self._checkpoint.name
        place, dose = place_of(base)
        if not is_shipped(base) and Path(place).is_dir():
            place = str(Path(place).resolve())
            base = place if dose is None else dose.name(place)
        measured = {key: value for key, value in asdict(record).items() if key not in VOLATILE}
        provenance = {"base": base, "record": measured, "layers": [asdict(layer) for layer in layers]}
        (about / PROVENANCE).write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf8")


def _clear(path: Path) -> None:
    """Make the directory, and remove what an earlier packed model has left there, its header first."""
    path.mkdir(parents=True, exist_ok=True)
    for file in (path / HEADER, *path.glob("block-*.safetensors"), path / "rest.safetensors"):
        file.unlink(missing_ok=True)
    if (path / ABOUT / PROVENANCE).is_file():
        shutil.rmtree(path / ABOUT)


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _file_bytes(contents: dict[str, tuple[str, tuple[int, ...]]]) -> int:
    """The size of a safetensors file of these types and shapes: a length, a JSON header filled up to 8 bytes, data."""
    sizes = {key: math.prod(shape) * _BYTES[kind] for key, (kind, shape) in contents.items()}
    header: dict[str, object] = {"__metadata__": FORMAT}
    position = 0
    for key in sorted(contents, key=lambda key: (-_BYTES[contents[key][0]], key)):  # widest types first, then by name
        kind, shape = contents[key]
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": [position, position + sizes[key]]}
        position += sizes[key]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + position
