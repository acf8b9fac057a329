"""Models on disk: packed (what `model_bytes` counts), and dequantized for anyone else to load.

A packed directory holds one safetensors file for each block and one for the rest. A quantized layer is its payload as
bytes; its header, as JSON, is in the file's metadata. Everything else is stored in the type the checkpoint has it in.
"""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from suite.models.checkpoint import Checkpoint, Stored
from suite.quantized import Quantized

_FORMAT = {"format": "pt"}  # the metadata that `transformers` expects
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1}
_KEPT = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt")


class PackedDirectory:
    """Writes a packed model below `path`, block by block."""

    def __init__(self, path: Path, checkpoint: Checkpoint):
        self._path, self._checkpoint = path, checkpoint
        path.mkdir(parents=True, exist_ok=True)

    def write(self, i: int, block: nn.Module, layers: dict[str, Quantized]) -> None:
        """Write block `i` with its quantized layers as payloads."""
        tensors = _beside(self._checkpoint, i, block, layers)
        for layer, found in layers.items():
            tensors[f"{layer}.weight"] = torch.frombuffer(bytearray(found.to_bytes()), dtype=torch.uint8)
        save_file(tensors, self._path / f"block-{i:05d}.safetensors", _metadata(layers))

    def finish(self) -> None:
        """Write embeddings, final norm and head; copy configuration and tokenizer."""
        save_file(_read_rest(self._checkpoint), self._path / "rest.safetensors", _FORMAT)
        _copy_small(self._checkpoint, self._path)


class ExportedDirectory:
    """Writes a dequantized model below `path` that `transformers` loads, block by block.

    Weights are in the checkpoint's own types and in the transformed coordinates; quantized activations are not in it.
    """

    def __init__(self, path: Path, checkpoint: Checkpoint):
        self._path, self._checkpoint = path, checkpoint
        self._names: dict[str, str] = {}
        self._size = 0
        path.mkdir(parents=True, exist_ok=True)

    def write(self, i: int, block: nn.Module, layers: dict[str, Quantized]) -> None:
        """Write block `i` as the checkpoint would have it."""
        tensors = _beside(self._checkpoint, i, block, {})
        self._save({self._checkpoint.architecture.full_name(i, key): t for key, t in tensors.items()}, f"{i:05d}")

    def finish(self) -> None:
        """Write the rest, and the index that `transformers` reads; copy configuration and tokenizer."""
        self._save(_read_rest(self._checkpoint), "rest")
        index = {"metadata": {"total_size": self._size}, "weight_map": self._names}
        (self._path / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
        _copy_small(self._checkpoint, self._path)

    def _save(self, tensors: dict[str, torch.Tensor], part: str) -> None:
        file = f"model-{part}.safetensors"
        save_file(tensors, self._path / file, _FORMAT)
        self._names |= dict.fromkeys(tensors, file)
        self._size += sum(t.nbytes for t in tensors.values())


def block_bytes(checkpoint: Checkpoint, i: int, layers: dict[str, Quantized]) -> int:
    """The exact size of the file that `PackedDirectory` writes for block `i`."""
    prefix = checkpoint.architecture.full_name(i, "")
    stored = {key.removeprefix(prefix): s for key, s in checkpoint.files.items() if key.startswith(prefix)}
    contents = {key: (s.kind, s.shape) for key, s in stored.items()}
    contents |= {f"{layer}.weight": ("U8", (-(-found.n_bits // 8),)) for layer, found in layers.items()}
    return _file_bytes(contents, _metadata(layers))


def rest_bytes(checkpoint: Checkpoint) -> int:
    """The exact size of the file with embeddings, final norm and head."""
    return _file_bytes({key: (s.kind, s.shape) for key, s in _rest(checkpoint).items()}, _FORMAT)


def _file_bytes(contents: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> int:
    """The size of a safetensors file of these types and shapes: a length, a JSON header filled up to 8 bytes, data."""
    sizes = {key: math.prod(shape) * _BYTES[kind] for key, (kind, shape) in contents.items()}
    header: dict[str, object] = {"__metadata__": metadata}
    position = 0
    for key in sorted(contents, key=lambda key: (-_BYTES[contents[key][0]], key)):  # widest types first, then by name
        kind, shape = contents[key]
        header[key] = {"dtype": kind, "shape": shape, "data_offsets": [position, position + sizes[key]]}
        position += sizes[key]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8 + position


def _metadata(layers: dict[str, Quantized]) -> dict[str, str]:
    """All headers under one key: safetensors writes several in no fixed order, and files would differ."""
    headers = {layer: found.header() for layer, found in layers.items()}
    return {"layers": json.dumps(headers, separators=(",", ":"))}


def _beside(checkpoint: Checkpoint, i: int, block: nn.Module, layers: dict[str, Quantized]) -> dict[str, torch.Tensor]:
    """What of block `i` is not packed, in the checkpoint's types; norms and biases as the transforms left them."""
    prefix = checkpoint.architecture.full_name(i, "")
    state = block.state_dict()
    stored = {key.removeprefix(prefix): s.dtype for key, s in checkpoint.files.items() if key.startswith(prefix)}
    packed = {f"{layer}.weight" for layer in layers}
    return {key: state[key].to(dtype).contiguous() for key, dtype in stored.items() if key not in packed}


def _rest(checkpoint: Checkpoint) -> dict[str, Stored]:
    """Everything outside the blocks, but for a head that is the embedding again."""
    left_out = f"{checkpoint.architecture.head}.weight" if checkpoint.tied else None
    blocks = f"{checkpoint.architecture.blocks}."
    return {key: s for key, s in checkpoint.files.items() if not key.startswith(blocks) and key != left_out}


def _read_rest(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {key: tensor for name in _rest(checkpoint) for key, tensor in checkpoint.stored(name) if key == name}


def _copy_small(checkpoint: Checkpoint, path: Path) -> None:
    for pattern in _KEPT:
        for file in checkpoint.path.glob(pattern):
            shutil.copy(file, path / file.name)


def read_packed(path: Path) -> Iterator[tuple[str, Quantized]]:
    """The quantized layers of a packed directory, by full name, one block in memory at a time."""
    for file in sorted(path.glob("block-*.safetensors")):
        i = int(file.stem.removeprefix("block-"))
        with safe_open(file, framework="pt") as opened:
            for layer, header in sorted(json.loads(opened.metadata()["layers"]).items()):
                payload = opened.get_tensor(f"{layer}.weight").numpy().tobytes()
                yield f"model.layers.{i}.{layer}", Quantized.from_bytes(payload, header)
