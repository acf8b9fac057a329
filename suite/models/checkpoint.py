"""A checkpoint in Hugging Face format, read from safetensors block by block.

At any time one decoder block is in working memory. The modules are those of `transformers`; what is here is only the
walk: embed, run block i on rows of hidden states, norm and head.
"""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from suite.models.architecture import Architecture, architecture_of, weight_of
from suite.models.doses import Dose, split_dose
from suite.models.files import FLOATS, Stored, index_of, read_tensor, weight_files
from suite.models.outliers import OutlierDial
from suite.models.turn import Turn, turn_embedding, turn_state

REFERENCE = Path(__file__).parent.parent / "reference"
SHIPPED = ("reference", "reference+outliers")
_ROWS_TOKENS = 4096  # tokens run through a block at once


def load_model(name: str, *, dtype: torch.dtype = torch.float32) -> "Checkpoint":
    """The checkpoint of this name: a directory in Hugging Face format, a hub id, or "reference", the shipped one.

    Any of these with `+outliers[:KIND][:FACTOR]` behind it is that model with the outlier dial on, KIND norm, linear or
    both, FACTOR a power of two to 256; 64-fold outliers of both kinds by default. Raises `ValueError` in one line for
    anything that is not a readable checkpoint of a supported architecture.
    """
    base, dose = place_of(name)
    path = REFERENCE if is_shipped(name) else Path(base)
    if not path.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not base.startswith("."):
        path = _download(base)
    return Checkpoint.open(path, name=name.rstrip("/"), dial=OutlierDial.of(dose), dtype=dtype)


def place_of(name: str) -> tuple[str, Dose | None]:
    """What comes before the dose in a model's name, a directory for instance, and the dose, None without one.

    A directory of that very name is the model itself. Raises `ValueError` for a suffix that is no dose.
    """
    return (name, None) if Path(name).is_dir() and not is_shipped(name) else split_dose(name)


def is_shipped(name: str) -> bool:
    """Whether a model's name is that of the shipped one, at any dose of outliers."""
    return re.fullmatch(r"reference(\+outliers(:.*)?)?", name) is not None


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.safetensors", "*.json", "tokenizer*"]))
    except Exception as error:  # the hub's client raises a dozen kinds, all of which mean: not to be had
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{hub_id}: no such directory, and not to be had from the hub ({reason})") from error


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; weights are read when a block is asked for, as `dtype`.

    `held` weights, by the tensor's name, are in memory and take the place of stored ones. `known_sha256` is the hash
    of files that were hashed when they were opened. With a `turn` the blocks are read in its coordinates.
    """

    name: str
    path: Path
    config: Any
    architecture: Architecture
    files: dict[str, Stored]  # by the tensor's name
    dial: OutlierDial | None
    dtype: torch.dtype
    held: Mapping[str, torch.Tensor] = field(default_factory=dict)
    known_sha256: str | None = None
    turn: Turn | None = None

    @classmethod
    def open(
        cls, path: Path, *, name: str, dial: OutlierDial | None = None, dtype: torch.dtype = torch.float32
    ) -> "Checkpoint":
        """Read the configuration and the tensors' index; `ValueError` in one line for what cannot be used."""
        if not path.is_dir():
            raise ValueError(f"{name}: no such directory")
        if not (path / "config.json").is_file():
            raise ValueError(f"{name}: no config.json in this directory")
        try:
            model_type = json.loads((path / "config.json").read_text())["model_type"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{name}: config.json is not a model's configuration: {error}") from error
        architecture, config = _configured(name, model_type, lambda: AutoConfig.from_pretrained(path))
        if dial is not None and not any(site.kind in dial.kinds for site in architecture.sites):
            raise ValueError(f"{name}: every layer of {architecture.name} follows a norm, none another layer")
        checkpoint = cls(name, path, config, architecture, index_of(weight_files(path, name), name), dial, dtype)
        checkpoint._check_tensors({})
        return checkpoint

    @classmethod
    def packed(
        cls,
        path: Path,
        *,
        name: str,
        config: dict[str, Any],
        files: dict[str, Stored],
        shapes: Mapping[str, tuple[int, ...]],
        sha256: str,
    ) -> "Checkpoint":
        """What is not quantized of a packed model; `shapes` are those of the tensors that are, by name.

        `path` is where its tokenizer is.
        """
        model_type = str(config.get("model_type"))
        architecture, found = _configured(name, model_type, lambda: AutoConfig.for_model(**config))
        checkpoint = cls(name, path, found, architecture, files, None, torch.float32, known_sha256=sha256)
        checkpoint._check_tensors(shapes)
        return checkpoint

    def _check_tensors(self, packed: Mapping[str, tuple[int, ...]]) -> None:
        """Every tensor of the model is there, and of its shape; nothing is read but the files' headers."""
        expected = {key: tuple(t.shape) for key, t in self.skeleton.state_dict().items() if t.is_floating_point()}
        if self.tied:
            expected.pop(f"{self.architecture.head}.weight", None)
        missing = sorted(set(expected) - set(self.files) - set(packed))
        if missing:
            raise ValueError(f"{self.name}: {len(missing)} tensors are missing, the first is {missing[0]}")
        for key, shape in sorted(expected.items()):
            there = packed[key] if key in packed else self.files[key].shape
            if there != shape:
                raise ValueError(f"{self.name}: {key} has shape {there}, config.json makes it {shape}")
            if key in packed:
                continue
            found = self.files[key]
            if found.kind not in FLOATS:
                raise ValueError(f"{self.name}: {key} is stored as {found.kind}, expected one of {', '.join(FLOATS)}")
        if self.config.vocab_size < 2:
            raise ValueError(f"{self.name}: a vocabulary of {self.config.vocab_size}")

    @cached_property
    def skeleton(self) -> nn.Module:
        """The whole model without any memory behind its weights."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.config)

    @property
    def tied(self) -> bool:
        """Whether the head shares the embedding's weights."""
        return bool(self.config.tie_word_embeddings)

    @property
    def n_blocks(self) -> int:
        """How many decoder blocks there are."""
        return int(self.config.num_hidden_layers)

    @property
    def context(self) -> int:
        """The longest row the model was made for."""
        return int(self.config.max_position_embeddings)

    @cached_property
    def sha256(self) -> str:
        """A hash of configuration and weights, whatever files they lie in; reads all weights once.

        Raises `ValueError` where a weight is NaN or infinite.
        """
        if self.known_sha256 is not None:
            return self.known_sha256
        digest = hashlib.sha256(json.dumps(self._identity(), sort_keys=True).encode())
        for key in sorted(self.files):
            tensor = self.tensor(key)
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{self.name}: {key} holds NaN or infinite values")
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def configuration(self) -> dict[str, Any]:
        """What the configuration says of the model, and nothing of who made it, where and with what."""
        config = self.config.to_dict()
        for volatile in ("transformers_version", "_name_or_path", "_attn_implementation", "architectures", "dtype"):
            config.pop(volatile, None)
        return config

    def _identity(self) -> dict[str, Any]:
        return {"config": self.configuration, "dial": None if self.dial is None else str(self.dial)}

    def tensor(self, key: str) -> torch.Tensor:
        """One tensor as stored, or as held."""
        return self.held[key] if key in self.held else read_tensor(self.files[key].file, key, self.name)

    def stored(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors, as stored, of everything that begins with `prefix`; held ones in their own type."""
        return ((key, self.tensor(key)) for key in sorted({*self.files, *self.held}) if key.startswith(prefix))

    def holding(self, weights: Mapping[str, torch.Tensor]) -> "Checkpoint":
        """The same checkpoint with these weights, by the tensor's name, in memory."""
        return replace(self, held={**self.held, **weights})

    def turned(self, turn: Turn, *, exact: bool = False) -> "Checkpoint":
        """The same model in the coordinates of `turn`: its function is what it was, a tied head is one of its own.

        Embedding, last norm and head are held in the types they are stored in, or as `dtype` where they are to be
        `exact`. The hash is of model and turn. Raises `ValueError` for rotations of another size.
        """
        sizes = {len(turn.matrix): self.config.hidden_size} | {len(R): self.head_dim for R in turn.heads or ()}
        if any(found != expected for found, expected in sizes.items()):
            raise ValueError(f"{self.name}: rotations of {list(sizes)} channels, expected {list(sizes.values())}")
        names = self.architecture
        embedding, norm, head = (f"{name}.weight" for name in (names.embedding, names.norm, names.head))
        config = copy.deepcopy(self.config)
        config.tie_word_embeddings = False
        files = {**self.files, head: self.files[embedding if self.tied else head]}
        gain = self.tensor(norm)
        held = {
            embedding: turn_embedding(self.tensor(embedding).to(self.dtype), turn.matrix),
            norm: torch.ones_like(gain),
            head: turn_embedding(self.tensor(embedding if self.tied else head).to(self.dtype), turn.matrix, gain),
        }
        if not exact:
            held = {key: tensor.to(files[key].dtype) for key, tensor in held.items()}
        known = hashlib.sha256(f"{self.sha256} turned {turn.sha256}".encode()).hexdigest()
        return replace(self, config=config, files=files, held={**self.held, **held}, known_sha256=known, turn=turn)

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads)

    def module(self, name: str, held: Mapping[str, torch.Tensor] | None = None) -> nn.Module:
        """A part of the model with its weights in place, a copy of its own; `held` go before all others."""
        shell = copy.deepcopy(self.skeleton.get_submodule(name))
        found = {**dict(self.stored(f"{name}.")), **(held or {})}
        tensors = {key.removeprefix(f"{name}."): t.to(self.dtype, copy=key in self.held) for key, t in found.items()}
        _widen(shell, tensors)
        shell.load_state_dict(tensors, assign=True)
        return shell.eval().requires_grad_(False)

    def block(self, i: int, held: Mapping[str, torch.Tensor] | None = None) -> nn.Module:
        """Decoder block `i`, a copy of its own, with the outlier dial and the turn applied; `held` as for `module`."""
        block = self.unturned_block(i, held)
        if self.turn is not None:
            turned = turn_state(block.state_dict(), self.architecture, self.turn.matrix, self.turn.of_head(i))
            block.load_state_dict(turned, assign=True)
            block.requires_grad_(False)
        return block

    def unturned_block(self, i: int, held: Mapping[str, torch.Tensor] | None = None) -> nn.Module:
        """Decoder block `i` with the outlier dial alone."""
        block = self.module(f"{self.architecture.blocks}.{i}", held)
        if self.dial is not None:
            self.dial.apply(block, self.architecture, i)
        return block

    @cached_property
    def _embedding(self) -> nn.Module:
        return self.module(self.architecture.embedding)

    @cached_property
    def _norm_and_head(self) -> tuple[nn.Module, nn.Module]:
        head = self._embedding if self.tied else self.module(self.architecture.head)
        return self.module(self.architecture.norm), head

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (rows, length) to hidden states (rows, length, hidden)."""
        return self._embedding(tokens)

    def weight(self, name: str) -> torch.Tensor:
        """The embedding's or the head's weights (vocabulary, hidden)."""
        return weight_of(self._embedding if name == self.architecture.embedding else self._norm_and_head[1], "")

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last block's output (..., hidden) through the final norm: the head's input."""
        return self._norm_and_head[0](hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last block's output (..., hidden) to logits (..., vocabulary)."""
        norm, head = self._norm_and_head
        return nn.functional.linear(norm(hidden), weight_of(head, ""), getattr(head, "bias", None))

    @torch.no_grad()
    def run(self, i: int, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (rows, length, hidden) through `block`, in the place of block `i`; a new tensor."""
        return torch.cat([block(part, **self.arguments(i, hidden)) for part in self.row_parts(hidden)])

    def row_parts(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The rows in parts of at most about 4,096 tokens."""
        return hidden.split(max(1, _ROWS_TOKENS // hidden.shape[1]))

    def arguments(self, i: int, hidden: torch.Tensor) -> dict[str, Any]:
        """What a block wants beside hidden states: rotary tables, positions, and a mask where plain causal is wrong."""
        positions = torch.arange(hidden.shape[1])[None]
        tables = self._rotary(hidden[:1], position_ids=positions)
        return {"attention_mask": self._mask(i, hidden.shape[1]), "position_ids": positions,
                "position_embeddings": tables}  # fmt: skip

    @cached_property
    def _rotary(self) -> nn.Module:
        return type(self.skeleton.get_submodule("model.rotary_emb"))(self.config)

    def _mask(self, i: int, length: int) -> torch.Tensor | None:
        """None for causal attention over everything; else where a query (row) may look, (1, 1, length, length)."""
        window = getattr(self.config, "sliding_window", None)
        kinds = getattr(self.config, "layer_types", None)
        if window is None or window >= length or (kinds and kinds[i] != "sliding_attention"):
            return None
        back = torch.arange(length)[:, None] - torch.arange(length)
        return ((back >= 0) & (back < window))[None, None]

    def tokenizer(self) -> Any:
        """The model's own tokenizer; `ValueError` if it has none."""
        try:
            return AutoTokenizer.from_pretrained(self.path, config=self.config)
        except Exception as error:  # a spoiled file may raise anything, `tokenizers` even a bare Exception
            raise ValueError(f"{self.name}: no tokenizer in this directory; give tokens as .npy") from error


def _widen(shell: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Make room for linear layers with more inputs than the configuration says: those of an expanded model."""
    for layer, module in shell.named_modules():
        W = tensors.get(f"{layer}.weight")
        if isinstance(module, nn.Linear) and W is not None and W.shape[1] > module.in_features:
            module.weight = nn.Parameter(torch.empty_like(W, device="meta"), requires_grad=False)
            module.in_features = W.shape[1]


def _configured(name: str, model_type: str, make: Callable[[], Any]) -> tuple[Architecture, Any]:
    """The adapter and the configuration that `make` gives; `ValueError` in one line where either cannot be had."""
    try:
        architecture, config = architecture_of(model_type), make()
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"{name}: config.json: {error}") from error
    config._attn_implementation = "sdpa"
    return architecture, config
