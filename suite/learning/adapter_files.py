"""Side branches as files of their own, in the format that `peft` reads: written from a packed model, put into another.

    DIR/adapter_config.json         rank, and the layers that have a branch; the scale is within B: lora_alpha = r
    DIR/adapter_model.safetensors   base_model.model.<layer>.lora_A.weight (rank, in), .lora_B.weight (out, rank)
    DIR/bitfrontier_adapter.json    what `peft` does not ask: hashes of the base that the branches belong to, and theirs

Numbers are float16, as packed models store them. The base is everything that a branch is added to: two packed models
with the same codes have the same base, whether either has branches or not. The same branches give the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from suite.adaptation.quantization_aware import QuantizationAware
from suite.export import FORMAT
from suite.models.files import index_of
from suite.packed import check_places, holds_packed
from suite.readback import PackedModel
from suite.side import LowRankSide

CONFIG, TENSORS, BESIDE = "adapter_config.json", "adapter_model.safetensors", "bitfrontier_adapter.json"
VERSION = 1
_KIND = "bitfrontier adapter"
_PREFIX = "base_model.model."
# a plain B A x, as peft's LoraConfig has it; what a config does not say is so
_PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False,
          "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Adapter:
    """Side branches by the layer's full name, of one rank, and the hash of the base that they belong to."""

    branches: Mapping[str, LowRankSide]
    base_sha256: str

    @property
    def sha256(self) -> str:
        """A hash of the branches: of layers' names, ranks and numbers."""
        found = hashlib.sha256()
        for layer in sorted(self.branches):
            side = self.branches[layer]
            found.update(_line([layer, side.rank, side.A.shape[1], len(side.B)]) + side.to_bytes())
        return found.hexdigest()

    @property
    def rank(self) -> int:
        """Of all branches."""
        ranks = {side.rank for side in self.branches.values()}
        assert len(ranks) == 1
        return ranks.pop()

    @classmethod
    def of(cls, packed: PackedModel) -> "Adapter":
        """The branches of a packed model.

        Raises `ValueError` for one that has none, and for one with layers whose inputs are mapped at run time: a branch
        behind such a map is no LoRA of the layer.
        """
        name = packed.checkpoint.name
        sides = {layer: packed.quantized(layer).side for layer in packed.payloads}
        branches = {layer: side for layer, side in sides.items() if side is not None}
        if not branches:
            raise ValueError(f"{name}: {packed.header.method} has no side branches beside its codes{_where(packed)}")
        if packed.maps:
            raise ValueError(f"{name}: {next(iter(packed.maps))} sees its inputs through a map, and its side branch "
                             f"too: such a branch is no LoRA")  # fmt: skip
        return cls(branches, base_sha256(packed))

    @classmethod
    def read(cls, name: str) -> "Adapter":
        """What `write` left in this directory; `ValueError` in one line for what is damaged, or something else."""
        path = Path(name)
        beside, config = (_read(path / file, name) for file in (BESIDE, CONFIG))
        if beside.get("format") != _KIND:
            raise ValueError(f"{name}: {BESIDE} is not that of an adapter")
        if beside.get("version") != VERSION:
            raise ValueError(f"{name}: {BESIDE} has format version {beside.get('version')!r}, this bitfrontier reads "
                             f"{VERSION}")  # fmt: skip
        for key, plain in _PLAIN.items():
            if (config.get(key) or plain) != plain:
                raise ValueError(f"{name}: {CONFIG} has {key} {config[key]!r}, expected {plain!r}")
        if config.get("lora_alpha") != config.get("r"):
            raise ValueError(f"{name}: {CONFIG} has r {config.get('r')!r}, lora_alpha {config.get('lora_alpha')!r}: "
                             f"expected the same, the scale is within B")  # fmt: skip
        branches = _branches(path / TENSORS, name)
        for layer, side in branches.items():
            if side.rank != config.get("r"):
                raise ValueError(f"{name}: {CONFIG} has r {config.get('r')!r}, the branch of {layer} has rank "
                                 f"{side.rank}")  # fmt: skip
        found = cls(branches, str(beside.get("base_sha256")))
        if found.sha256 != beside.get("sha256"):
            raise ValueError(f"{name}: {TENSORS} is damaged: the SHA-256 of its branches is {found.sha256}, {BESIDE} "
                             f"says {beside.get('sha256')}")  # fmt: skip
        return found

    def write(self, path: Path, packed: PackedModel) -> None:
        """Write the directory `path`, as an adapter of the model that `packed` was quantized from."""
        path.mkdir(parents=True, exist_ok=True)
        (path / BESIDE).unlink(missing_ok=True)  # what makes it an adapter of ours is written last
        tensors = {f"{_PREFIX}{layer}.lora_{letter}.weight": x for layer, side in self.branches.items()
                   for letter, x in (("A", side.A), ("B", side.B))}  # fmt: skip
        save_file({key: x.contiguous() for key, x in tensors.items()}, path / TENSORS, FORMAT)
        config = {
            **_PLAIN, "task_type": "CAUSAL_LM", "inference_mode": True, "lora_dropout": 0.0,
            "base_model_name_or_path": packed.provenance.base if packed.provenance else None,
            "r": self.rank, "lora_alpha": self.rank, "target_modules": _modules(self.branches, packed),
        }  # fmt: skip
        beside = {"format": _KIND, "version": VERSION, "base_sha256": self.base_sha256, "sha256": self.sha256}
        for file, value in ((CONFIG, config), (BESIDE, beside)):
            (path / file).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf8")


def base_sha256(packed: PackedModel) -> str:
    """A hash of the base of adapters: of the model that was quantized, and every quantized layer without its branch."""
    found = hashlib.sha256(packed.header.model_sha256.encode())
    for layer in sorted(packed.payloads):
        plain = replace(packed.quantized(layer), side=None)
        payload = plain.to_bytes()
        found.update(_line([layer, len(payload), plain.header()]) + payload)
    return found.hexdigest()


def check_adapter_place(out: Path, model: str) -> None:
    """Raise `ValueError` for an output directory that holds a model."""
    check_places(out, None, model)
    if holds_packed(out):
        raise ValueError(f"cannot write {out}: a packed model is there")


def with_adapter(packed: PackedModel, name: str) -> PackedModel:
    """A packed model with the branches of the adapter in the directory `name`, in place of its own or of none.

    It is a model of its own, with its own hash. What was measured of the packed model's weights is not known of it, so
    that it has no provenance. Raises `ValueError` in one line for what is no adapter, or one of another base.
    """
    adapter = Adapter.read(name)
    model, own = packed.checkpoint.name, base_sha256(packed)
    architecture = packed.checkpoint.architecture
    missing = sorted(set(adapter.branches) - (set(packed.payloads) - {architecture.embedding, architecture.head}))
    if missing:
        raise ValueError(f"adapter {name}: {model} has no quantized layer {missing[0]}")
    for layer, side in adapter.branches.items():
        n_out, n_in = packed.header.layers[layer]["shape"]
        if (len(side.B), side.A.shape[1]) != (n_out, n_in):
            raise ValueError(f"adapter {name}: {layer} takes {side.A.shape[1]} inputs to {len(side.B)} outputs, in "
                             f"{model} {n_in} to {n_out}")  # fmt: skip
    if adapter.base_sha256 != own:
        raise ValueError(f"adapter {name} belongs to another base: SHA-256 {adapter.base_sha256[:12]}.., that of "
                         f"{model} is {own[:12]}..")  # fmt: skip
    sha256 = hashlib.sha256(f"{packed.checkpoint.sha256} {adapter.sha256}".encode()).hexdigest()
    files = sum((Path(name) / file).stat().st_size for file in (CONFIG, TENSORS))
    replaced = sum(2 * found.get("rank", 0) * sum(found["shape"]) for found in packed.header.layers.values())
    checkpoint = replace(packed.checkpoint, name=f"{model} with {name}", known_sha256=sha256)
    return replace(packed, checkpoint=checkpoint, branches=adapter.branches, beside_bytes=files - replaced,
                   provenance=None)  # fmt: skip


def _where(packed: PackedModel) -> str:
    how = packed.recipe.adaptation
    if getattr(how, "pooled", False):
        return ": they are merged into zero points"
    return ": they are within the weights that were rounded" if (
        isinstance(how, QuantizationAware) and how.adapters is not None) else ""  # fmt: skip


def _modules(branches: Mapping[str, LowRankSide], packed: PackedModel) -> list[str]:
    """The layers' own names where they mean the same in every block, as is usual; else full names."""
    checkpoint = packed.checkpoint
    own = {layer.rpartition(".")[2] for layer in branches}
    meant = {checkpoint.architecture.full_name(i, layer) for i in range(checkpoint.n_blocks)
             for layer in checkpoint.architecture.layers if layer.rpartition(".")[2] in own}  # fmt: skip
    return sorted(own if meant == set(branches) else branches)


def _branches(file: Path, name: str) -> dict[str, LowRankSide]:
    """The branches of the tensors in a file."""
    if not file.is_file():
        raise ValueError(f"{name}: {TENSORS} is missing")
    index_of([file], name)  # refuses a file that cannot be read
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, x in load_file(file).items():
        layer, _, letter = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if letter not in ("A", "B") or key != f"{_PREFIX}{layer}.lora_{letter}.weight":
            raise ValueError(f"{name}: {TENSORS} has {key}, which is none of a plain adapter's tensors")
        sides.setdefault(layer, {})[letter] = x
    if not sides:
        raise ValueError(f"{name}: {TENSORS} holds no branches")
    for layer, found in sides.items():
        if missing := {"A", "B"} - set(found):
            raise ValueError(f"{name}: {layer} has no lora_{missing.pop()} in {TENSORS}")
    try:
        return {layer: LowRankSide(found["A"], found["B"]) for layer, found in sides.items()}
    except ValueError as error:
        raise ValueError(f"{name}: {TENSORS}: {error}") from error


def _read(file: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is not an adapter that `bitfrontier adapter` wrote: {file.name} cannot be read: "
                         f"{error}") from error  # fmt: skip
    if not isinstance(found, dict):
        raise ValueError(f"{name}: {file.name} is not an object of JSON")
    return found


def _line(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"
