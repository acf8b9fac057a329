"""Packed models read back: checked, decoded block by block, and measured with the figures they had when written."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import nn

from suite.blockwise import map_inputs, quantize_inputs
from suite.kv_cache.codec import Tables, tables_among
from suite.kv_cache.evaluation import evaluate_through, rotate_keys
from suite.models.architecture import Architecture, architecture_of, linear
from suite.models.checkpoint import SHIPPED, Checkpoint, load_model
from suite.models.files import Stored, index_of, read_tensor
from suite.outside import weights_of
from suite.packed import ABOUT, CACHE_TABLES, HEADER, PROVENANCE, Header, sha256_of
from suite.quantized import Quantized
from suite.recipe import Recipe, parse
from suite.side import LowRankSide
from suite.store import LayerRecord
from suite.transforms import Map, RotateKeys, map_from

Size = tuple[int, float, int, int]  # of a layer: exact bits, bits at the codes' entropy, really coded, weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a packed directory says beside the model: where its base was, and what was measured when it was quantized.

    Errors of weights need the original weights and inputs, which the packed model does not have: `nmse`, `hnmse`, their
    `bound` and the layers' are carried as they were found.
    """

    base: str
    nmse: float | None
    hnmse: float | None
    bound: float | None
    fallbacks: tuple[str, ...]
    layers: dict[str, LayerRecord]

    @classmethod
    def read(cls, path: Path, name: str) -> "Provenance | None":
        """The provenance in a packed directory, or None; `ValueError` in one line for one that cannot be read."""
        file = path / ABOUT / PROVENANCE
        if not file.is_file():
            return None
        try:
            found = json.loads(file.read_text(encoding="utf8"))
            record, layers = found["record"], {x["layer"]: LayerRecord(**x) for x in found["layers"]}
            return cls(base=str(found["base"]), nmse=record["nmse"], hnmse=record["hnmse"], bound=record["bound"],
                       fallbacks=tuple(record["fallbacks"]), layers=layers)  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{name}: {ABOUT}/{PROVENANCE} cannot be read: {error!r}") from error


@dataclass(frozen=True)
class PackedModel:
    """An opened packed directory: every file is there and is what the header says.

    `checkpoint` is what is not quantized, with embedding and head decoded; `payloads` are where quantized matrices lie,
    by name. `maps` are what inputs pass through at run time, by the first layer of a site; `tables` where what caches
    have learned lies. `provenance` is what the directory says beside the model. With `branches`, by layer, the model
    has these and not its own: its files and `beside_bytes` more are what it takes.
    """

    path: Path
    header: Header
    recipe: Recipe
    checkpoint: Checkpoint
    payloads: Mapping[str, Stored]
    maps: Mapping[str, tuple[Map, ...]]
    tables: Mapping[str, Stored]
    provenance: Provenance | None
    branches: Mapping[str, LowRankSide] | None = None
    beside_bytes: int = 0

    @classmethod
    def open(cls, name: str) -> "PackedModel":
        """Read and check the header and all files; `ValueError` in one line for what is damaged, missing or unknown."""
        path = Path(name)
        header = Header.read(path, name)
        for shard, sha256 in header.shards.items():
            _check_shard(path, shard, sha256, name)
        files = index_of([path / shard for shard in sorted(header.shards)], name)
        try:
            recipe = parse(header.recipe)
            shapes = {f"{layer}.weight": tuple(found["shape"]) for layer, found in header.layers.items()}
            maps = {layer: tuple(map(map_from, found)) for layer, found in header.maps.items()}
            n_in = _mapped_inputs(architecture_of(str(header.config.get("model_type"))), maps)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{name}: {HEADER}: {error}") from error
        missing = sorted(key for key in shapes if key not in files or files[key].kind != "U8")
        if missing:
            raise ValueError(f"{name}: the payload of {missing[0]} is missing")
        tables = {key: s for key, s in files.items() if f".{CACHE_TABLES}." in key}
        rest = {key: s for key, s in files.items() if key not in shapes and key not in tables}
        checkpoint = Checkpoint.packed(path / ABOUT, name=name, config=header.config, files=rest,
                                       shapes=_as_configured(shapes, rest, n_in),
                                       sha256=header.sha256)  # fmt: skip
        payloads = {key.removesuffix(".weight"): files[key] for key in shapes}
        bare = cls(path, header, recipe, checkpoint, payloads, maps, tables, Provenance.read(path, name))
        outside = bare.layers_outside()
        return replace(bare, checkpoint=checkpoint.holding(weights_of(outside))) if outside else bare

    def quantized(self, layer: str) -> Quantized:
        """The quantized matrix of this name; `ValueError` where payload and header do not fit."""
        payload = read_tensor(self.payloads[layer].file, f"{layer}.weight", self.checkpoint.name)
        try:
            found = Quantized.from_bytes(payload.numpy().tobytes(), self.header.layers[layer])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.checkpoint.name}: {layer}: {error}") from error
        return found if self.branches is None else replace(found, side=self.branches.get(layer))

    def layers_outside(self) -> dict[str, Quantized]:
        """The embedding and the head, if they are quantized."""
        architecture = self.checkpoint.architecture
        return {name: self.quantized(name) for name in (architecture.embedding, architecture.head)
                if name in self.payloads}  # fmt: skip

    def block(self, i: int) -> tuple[nn.Module, dict[str, Quantized]]:
        """Block `i` as it was evaluated, activations and cache included, and its quantized layers by full name."""
        block, layers = self.block_without_cache(i)
        for transform in self.recipe.transforms if self.recipe.cache is None else ():
            if isinstance(transform, RotateKeys):
                rotate_keys(block, self.checkpoint.config, transform.fit(self.checkpoint.head_dim))
        if self.recipe.held_cache is not None:
            evaluate_through(block, self.checkpoint.config, self.recipe.held_cache, self.cache_tables(i))
        return block, layers

    def block_without_cache(self, i: int) -> tuple[nn.Module, dict[str, Quantized]]:
        """The same for a cache of whoever runs it: keys go into it as they come, rounded and rotated by nobody."""
        architecture = self.checkpoint.architecture
        names = {layer: architecture.full_name(i, layer) for layer in architecture.layers}
        layers = {name: self.quantized(name) for name in names.values() if name in self.payloads}
        block = self.checkpoint.block(i, weights_of(layers))
        for site in architecture.sites:
            map_inputs(block, site, self.maps.get(names[site.layers[0]], ()))
        if self.recipe.activations is not None:
            for layer, name in names.items():
                span = self.header.ranges.get(name, float("nan"))  # only static scales have one, and only they ask
                ends = (span[0], span[1]) if isinstance(span, list | tuple) else span  # JSON has no tuples
                quantize_inputs(linear(block, layer), self.recipe.activations.grid, ends)
        return block, layers

    def cache_tables(self, i: int) -> Tables:
        """What the cache of block `i` has learned."""
        prefix = self.checkpoint.architecture.full_name(i, CACHE_TABLES)
        found = {key: read_tensor(stored.file, key, self.checkpoint.name) for key, stored in self.tables.items()
                 if key.startswith(prefix)}  # fmt: skip
        return tables_among(found, prefix)

    def sizes(self, layers: Mapping[str, Quantized]) -> list[Size]:
        """What quantized layers take, by full name, with the maps of their inputs."""
        found = []
        for name, quantized in layers.items():
            n_out, n_in = quantized.grid.shape
            beside = sum(m.n_bits for m in self.maps.get(name, ()))
            weights = n_out * self._n_in.get(name, n_in)
            found.append((quantized.n_bits + beside, quantized.entropy_bits + beside, quantized.coded_bits + beside,
                          weights))  # fmt: skip
        return found

    @cached_property
    def _n_in(self) -> dict[str, int]:
        return _mapped_inputs(self.checkpoint.architecture, self.maps)

    @property
    def n_bytes(self) -> int:
        """The size of the model on disk: header and shards, with what its branches take instead of their own."""
        return sum((self.path / file).stat().st_size for file in (HEADER, *self.header.shards)) + self.beside_bytes


def _mapped_inputs(architecture: Architecture, maps: Mapping[str, tuple[Map, ...]]) -> dict[str, int]:
    """How many inputs a layer has before the maps of its site, by full name, for layers that have any."""
    found: dict[str, int] = {}
    for name, chain in maps.items():
        site = next(site for site in architecture.sites if name.endswith(f".{site.layers[0]}"))
        prefix = name.removesuffix(site.layers[0])
        found |= {f"{prefix}{layer}": chain[0].n_in for layer in site.layers}
    return found


def _as_configured(
    shapes: Mapping[str, tuple[int, ...]], rest: Mapping[str, Stored], n_in: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Shapes of quantized tensors, and of those whose inputs are mapped, as they are before an expansion, by name."""
    found = dict(shapes)
    for key, width in ((f"{layer}.weight", width) for layer, width in n_in.items()):
        found[key] = (found[key][0] if key in found else rest[key].shape[0], width)
    return found


def read_packed(path: Path) -> Iterator[tuple[str, Quantized]]:
    """The quantized matrices of a packed directory, by name, one in memory at a time."""
    model = PackedModel.open(str(path))
    return ((name, model.quantized(name)) for name in model.payloads)


def _check_shard(path: Path, shard: str, sha256: str, name: str) -> None:
    if Path(shard).name != shard:
        raise ValueError(f"{name}: {HEADER} names {shard!r}, which is not a file of this directory")
    if not (path / shard).is_file():
        raise ValueError(f"{name}: {shard} is missing")
    found = sha256_of(path / shard)
    if found != sha256:
        raise ValueError(f"{name}: {shard} is damaged: its SHA-256 is {found}, {HEADER} says {sha256}")


def find_base(asked: str | None, packed: PackedModel) -> tuple[Checkpoint | None, str]:
    """The unquantized model, by its hash, or None and why: as `asked`, else where it was, else among the shipped.

    Raises `ValueError` where it is asked for by name and is not there, or is another model.
    """
    reasons = []
    for name in [asked] if asked is not None else [packed.provenance.base] if packed.provenance else SHIPPED:
        try:
            found = load_model(name)
            if found.sha256 == packed.header.model_sha256:
                return found, ""
            reasons.append(f"{name} is another model: its SHA-256 is {found.sha256}, "
                           f"expected {packed.header.model_sha256}")  # fmt: skip
        except ValueError as error:
            reasons.append(str(error))
    if asked is not None:
        raise ValueError(f"base {reasons[0]}")
    return None, "; ".join(reasons)
