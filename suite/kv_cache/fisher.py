"""Tables for a cache, learned from calibration: KVQuant's weighted k-means.

Hooper et al. 2024, "KVQuant: Towards 10 Million Context Length LLM Inference with KV Cache Quantization",
arXiv:2401.18079. A layer's keys have one table and its values another: the levels u of normalized values with the least

    sum over values x of  F_x (x - reach u - offset)^2,    F_x = (d loss / d x)^2,

the empirical Fisher information of the unquantized model on calibration rows, with the labels that follow. The release
weighs by F alone; here F is multiplied by the squared reach that the normalization divides by, as the sum above says.
Outliers and sinks meet no table and do not count.
"""

from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from suite.cache import keep
from suite.environment import code_version, environment_key
from suite.grids.lloyd_max import k_means
from suite.kv_cache.codec import LARGEST, Learned, middle, normalized, tails
from suite.kv_cache.evaluation import take_cache
from suite.kv_cache.rotary import Rotary
from suite.kv_cache.target import CacheTarget, LearnedTable
from suite.models.checkpoint import Checkpoint
from suite.tokens import Tokens

Tables = tuple[Learned | None, Learned | None]  # of a layer's keys and values


def learn(checkpoint: Checkpoint, tokens: Tokens, target: CacheTarget, threads: int) -> tuple[Tables, ...]:
    """The tables of every block that the target takes; kept on disk, None where there is nothing to learn."""
    if not target.learned:
        return ((None, None),) * checkpoint.n_blocks
    about = f"cache tables {target} {checkpoint.sha256} {tokens.sha256} {checkpoint.dtype}"
    kept = keep(f"{about} {code_version()} {environment_key(threads)}",
                lambda path: save_file(_learn(checkpoint, tokens, target), path / "tables.safetensors"))  # fmt: skip
    found = load_file(kept / "tables.safetensors")
    return tuple(tuple(_read(found, f"{i}.{side}") for side in ("keys", "values")) for i in range(checkpoint.n_blocks))  # type: ignore[misc]


def _read(found: dict[str, torch.Tensor], name: str) -> Learned | None:
    parts = [found.get(f"{name}.{part}") for part in ("levels", "offset", "reach")]
    return None if parts[0] is None else Learned(parts[0], parts[1], parts[2])


class _Seen:
    """Stands where attention looks for its cache and keeps the keys and values that pass."""

    states: tuple[torch.Tensor, ...] = ()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any) -> tuple[torch.Tensor, ...]:
        self.states = key_states, value_states
        return self.states


class _Pullback(nn.Module):
    """Stands in a block's place: hands back the gradient of its input, keeps keys and values and their gradients."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self._seen = block, _Seen()
        take_cache(block.get_submodule("self_attn"), self._seen)
        self.cotangent = torch.empty(0)
        self.found: list[tuple[torch.Tensor, ...]] = []  # keys, values, their gradients, (rows, heads, n, d)

    def forward(self, hidden: torch.Tensor, **arguments: object) -> torch.Tensor:
        with torch.enable_grad():
            front = hidden.detach().requires_grad_(True)
            after = self.block(front, **arguments)
            gradients = torch.autograd.grad(after, [front, *self._seen.states], self.cotangent)
        self.found.append((*(states.detach() for states in self._seen.states), *gradients[1:]))
        return gradients[0]


@torch.no_grad()
def _learn(checkpoint: Checkpoint, tokens: Tokens, target: CacheTarget) -> dict[str, torch.Tensor]:
    """The parts of all tables, by "block.side.part"; from the last block to the first, one at a time."""
    ids = tokens.tensor()
    fronts = [checkpoint.embed(ids)]
    for i in range(checkpoint.n_blocks):
        fronts.append(checkpoint.run(i, checkpoint.block(i), fronts[-1]))
    cotangents = _from_labels(checkpoint, fronts.pop(), ids)
    rotary = Rotary(checkpoint.config) if target.rotary == "before" else None
    found: dict[str, torch.Tensor] = {}
    for i in reversed(range(checkpoint.n_blocks)):
        pullback, before = _Pullback(checkpoint.block(i)), []
        for front, cotangent in zip(*map(checkpoint.row_parts, (fronts.pop(), cotangents)), strict=True):
            pullback.cotangent = cotangent
            before.append(checkpoint.run(i, pullback, front))
        cotangents = torch.cat(before)
        keys, values, by_keys, by_values = (
            torch.cat(part).transpose(1, 2) for part in zip(*pullback.found, strict=True)
        )
        if rotary is not None:
            places = torch.arange(keys.shape[1])
            keys, by_keys = rotary.undo(keys, places), rotary.undo(by_keys, places)  # orthogonal, but for one factor
        for name, side, x, gradient in (
            ("keys", target.keys, keys, by_keys),
            ("values", target.values, values, by_values),
        ):
            if isinstance(side.grid, LearnedTable):
                x, gradient = (part[:, target.sinks :].flatten(2) for part in (x, gradient))
                for part, tensor in learned(side.grid, x, gradient**2).items():
                    found[f"{i}.{name}.{part}"] = tensor
    return found


def _from_labels(checkpoint: Checkpoint, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Gradients of the negative log-likelihood, summed over tokens, by the last hidden states (rows, n, hidden)."""
    found = []
    for part, follows in zip(
        checkpoint.row_parts(hidden), ids.split(len(checkpoint.row_parts(hidden)[0])), strict=True
    ):
        with torch.enable_grad():
            last = part.detach().requires_grad_(True)
            log_p = checkpoint.logits(last[:, :-1]).log_softmax(-1)
            found.append(torch.autograd.grad(-log_p.gather(-1, follows[:, 1:, None]).sum(), last)[0])
    return torch.cat(found)


def learned(table: LearnedTable, x: torch.Tensor, fisher: torch.Tensor) -> dict[str, torch.Tensor]:
    """The parts of a `Learned` from values (rows, n, channels) and the weight of each; float16.

    Raises `ValueError` for a row of no tokens, as where all of them are sinks.
    """
    if x.numel() == 0:
        raise ValueError(f"a table takes tokens beyond the sinks, found values of shape {tuple(x.shape)}")
    ranged = x.reshape(-1, x.shape[-1]).T if table.ranges == "static" else x  # a channel over tokens, or a token's own
    low, high = tails(ranged, table.outliers)
    outside = (ranged < low) | (ranged > high)
    if table.ranges == "static":
        offset, reach = (high + low) / 2, (high - low) / 2
    else:
        offset, reach = middle(ranged, outside)
    offset, reach = (part.clamp(-LARGEST, LARGEST).half() for part in (offset, reach))
    u = normalized(ranged, offset.to(x.dtype), reach.to(x.dtype))
    weight = (fisher.reshape(-1, x.shape[-1]).T if table.ranges == "static" else fisher) * reach.to(x.dtype) ** 2
    inside = ~outside
    levels = k_means(u[inside], 2**table.bits, weight[inside]).clamp(-1, 1).half().sort().values
    static = {"offset": offset[:, 0], "reach": reach[:, 0]} if table.ranges == "static" else {}
    return {"levels": levels} | {name: part.contiguous() for name, part in static.items()}
