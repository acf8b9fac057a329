"""Tensors in safetensors files: where they lie, as what, and one of them read at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies and what it is there, with its type as safetensors writes it."""

    file: Path
    kind: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The type as torch has it."""
        return FLOATS[self.kind]


def read_tensor(file: Path, key: str, name: str) -> torch.Tensor:
    """One tensor as stored. The file is opened for it alone, so mapped pages do not pile up."""
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(key).clone()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{name}: cannot read {key} from {file.name}: {error}") from error


def index_of(files: Sequence[Path], name: str) -> dict[str, Stored]:
    """Tensor name to where it lies, for everything in these safetensors files."""
    index: dict[str, Stored] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():
                    if key.endswith("rotary_emb.inv_freq"):  # old checkpoints keep what follows from the configuration
                        continue
                    view = opened.get_slice(key)
                    index[key] = Stored(file, view.get_dtype(), tuple(view.get_shape()))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{name}: {file.name} is not a readable safetensors file: {error}") from error
    return index


def weight_files(path: Path, name: str) -> list[Path]:
    """The safetensors files of a directory; `ValueError` where there are none."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = sorted(p.name for kind in ("*.bin", "*.pt", "*.pth") for p in path.glob(kind))
        found = f"found {pickles[0]}, and pickles are not read" if pickles else "found none"
        raise ValueError(f"{name}: expected weights in safetensors, {found}")
    return files
