"""Models on disk: packed (what `model_bytes` counts), and dequantized for anyone else to load.

A packed directory holds one safetensors file for each block and one for the rest. A quantized layer is its payload as
bytes; its header, as JSON, is in the file's metadata. Everything else is stored in the type the checkpoint has it in.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import nn

from suite.models.checkpoint import Checkpoint
from suite.quantized import Quantized

_FORMAT = {"format": "pt"}  # the metadata that `transformers` expects
_KEPT = ("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt")


def block_bytes(checkpoint: Checkpoint, i: int, block: nn.Module, layers: dict[str, Quantized]) -> int:
    """The exact size of the file that `write_block` writes, without packing anything."""
    tensors = _block_tensors(checkpoint, i, block, layers)
    for layer, found in layers.items():
        tensors[f"{layer}.weight"] = torch.zeros(-(-found.n_bits // 8), dtype=torch.uint8)
    return len(save(tensors, _metadata(layers)))


def write_block(path: Path, checkpoint: Checkpoint, i: int, block: nn.Module, layers: dict[str, Quantized]) -> None:
    """Write block `i`, its layers packed, into the directory `path`."""
    tensors = _block_tensors(checkpoint, i, block, layers)
    for layer, found in layers.items():
        tensors[f"{layer}.weight"] = torch.frombuffer(bytearray(found.to_bytes()), dtype=torch.uint8)
    save_file(tensors, path / _block_file(i), _metadata(layers))


def _block_file(i: int) -> str:
    return f"block-{i:05d}.safetensors"


def _metadata(layers: dict[str, Quantized]) -> dict[str, str]:
    return {layer: json.dumps(found.header(), separators=(",", ":")) for layer, found in layers.items()}


def _block_tensors(checkpoint: Checkpoint, i: int, block: nn.Module, layers: dict) -> dict[str, torch.Tensor]:
    """What is not quantized, in the checkpoint's types; norms and biases as the transforms left them."""
    prefix = f"{checkpoint.architecture.blocks}.{i}."
    state = block.state_dict()
    stored = {key.removeprefix(prefix): tensor.dtype for key, tensor in checkpoint.stored(prefix)}
    packed = {f"{layer}.weight" for layer in layers}
    return {key: state[key].to(dtype).contiguous() for key, dtype in stored.items() if key not in packed}


def _rest(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    tensors = {key: t for key, t in checkpoint.stored("") if not key.startswith(f"{checkpoint.architecture.blocks}.")}
    if checkpoint.tied:
        tensors.pop(f"{checkpoint.architecture.head}.weight", None)
    return tensors


def rest_bytes(checkpoint: Checkpoint) -> int:
    """The exact size of the file with embeddings, final norm and head."""
    return len(save(_rest(checkpoint), _FORMAT))


def write_rest(path: Path, checkpoint: Checkpoint) -> None:
    """Write embeddings, final norm, head, and copy configuration and tokenizer."""
    save_file(_rest(checkpoint), path / "rest.safetensors", _FORMAT)
    for pattern in _KEPT:
        for file in checkpoint.path.glob(pattern):
            shutil.copy(file, path / file.name)


def read_packed(path: Path) -> Iterator[tuple[str, Quantized]]:
    """The quantized layers of a packed directory, by full name, one block in memory at a time."""
    for file in sorted(path.glob("block-*.safetensors")):
        i = int(file.stem.removeprefix("block-"))
        with safe_open(file, framework="pt") as opened:
            for layer, header in sorted((opened.metadata() or {}).items()):
                payload = opened.get_tensor(f"{layer}.weight").numpy().tobytes()
                yield f"model.layers.{i}.{layer}", Quantized.from_bytes(payload, json.loads(header))


def export_block(path: Path, checkpoint: Checkpoint, i: int, block: nn.Module) -> None:
    """Write block `i` as the checkpoint would have it, with dequantized weights."""
    prefix = f"{checkpoint.architecture.blocks}.{i}."
    tensors = {prefix + key: t.contiguous() for key, t in _block_tensors(checkpoint, i, block, {}).items()}
    save_file(tensors, path / f"model-{i:05d}.safetensors", _FORMAT)


def export_rest(path: Path, checkpoint: Checkpoint) -> None:
    """Write the rest of an exported directory, and the index that `transformers` reads."""
    save_file(_rest(checkpoint), path / "model-rest.safetensors", _FORMAT)
    names = {}
    for file in sorted(path.glob("model-*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            names |= dict.fromkeys(opened.keys(), file.name)
    size = sum(file.stat().st_size for file in path.glob("model-*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": names}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    for pattern in _KEPT:
        for file in checkpoint.path.glob(pattern):
            shutil.copy(file, path / file.name)
