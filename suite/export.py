"""Dequantized models on disk, for anyone else to load: a directory in Hugging Face format."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from suite.models.checkpoint import Checkpoint
from suite.models.files import Stored
from suite.transforms import Map

FORMAT = {"format": "pt"}  # the metadata that `transformers` expects
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt")
_KEPT = ("config.json", "generation_config.json", *TOKENIZER)


class ExportedDirectory:
    """Writes a dequantized model below `path` that `transformers` loads, block by block.

    Weights are in the checkpoint's own types and in the transformed coordinates, but for maps of inputs at run time,
    which are undone; quantized activations and caches are not in it.
    """

    def __init__(self, path: Path, checkpoint: Checkpoint):
        self._path, self._checkpoint = path, checkpoint
        self._names: dict[str, str] = {}
        self._size = 0
        path.mkdir(parents=True, exist_ok=True)

    def write(self, i: int, block: nn.Module, maps: Mapping[str, tuple[Map, ...]]) -> None:
        """Write block `i` as the checkpoint would have it, without the `maps` of its sites, by first layer."""
        names, tensors = self._checkpoint.architecture, dict(block_tensors(self._checkpoint, i, block))
        for site in names.sites:
            for m in reversed(maps.get(names.full_name(i, site.layers[0]), ())):
                for layer in site.layers:
                    key = f"{names.full_name(i, layer)}.weight"
                    tensors[key] = m.from_weights(tensors[key].float()).to(tensors[key].dtype).contiguous()
        self._save(tensors, f"{i:05d}")

    def finish(self, evaluated: Checkpoint) -> None:
        """Write embedding, final norm and head as `evaluated` has them, and the index that `transformers` reads."""
        self._save({key: evaluated.tensor(key).to(s.dtype) for key, s in rest_of(self._checkpoint).items()}, "rest")
        index = {"metadata": {"total_size": self._size}, "weight_map": self._names}
        (self._path / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
        copy_small(self._checkpoint.path, self._path, _KEPT)
        if self._checkpoint.turn is not None:  # which has untied the head
            config = json.loads((self._path / "config.json").read_text())
            config["tie_word_embeddings"] = False
            (self._path / "config.json").write_text(json.dumps(config, indent=1) + "\n")

    def _save(self, tensors: dict[str, torch.Tensor], part: str) -> None:
        file = f"model-{part}.safetensors"
        save_file(tensors, self._path / file, FORMAT)
        self._names |= dict.fromkeys(tensors, file)
        self._size += sum(t.nbytes for t in tensors.values())


def block_tensors(checkpoint: Checkpoint, i: int, block: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of block `i` by full name, in the types that the checkpoint has them in."""
    for key, tensor in block.state_dict().items():
        name = checkpoint.architecture.full_name(i, key)
        yield name, tensor.to(checkpoint.files[name].dtype).contiguous()


def rest_of(checkpoint: Checkpoint) -> dict[str, Stored]:
    """What of a checkpoint's files the model reads outside its blocks: no head that is the embedding again."""
    architecture = checkpoint.architecture
    parts = (architecture.embedding, architecture.norm, *(() if checkpoint.tied else (architecture.head,)))
    return {key: s for key, s in checkpoint.files.items() if key.rpartition(".")[0] in parts}


def copy_small(source: Path, to: Path, patterns: tuple[str, ...]) -> None:
    """Copy the files of these patterns."""
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            shutil.copyfile(file, to / file.name)
