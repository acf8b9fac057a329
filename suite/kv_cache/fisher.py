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
from suite.kv_cache.codec import (
    LARGEST,
    NO_TABLES,
    Learned,
    Tables,
    middle,
    named_tables,
    normalized,
    tables_among,
    tails,
)
from suite.kv_cache.evaluation import take_cache
from suite.kv_cache.rotary import Rotary
from suite.kv_cache.target import CacheGrid, CacheTarget, LearnedTable
from suite.models.checkpoint import Checkpoint
from suite.tokens import Tokens


def learn(checkpoint: Checkpoint, tokens: Tokens, target: CacheTarget, threads: int) -> tuple[Tables, ...]:
    """The tables of every block that the target takes; kept on disk, None where there is nothing to learn."""
    if not target.learned:
        return (NO_TABLES,) * checkpoint.n_blocks
    about = f"cache tables {target} {checkpoint.sha256} {tokens.sha256} {checkpoint.dtype}"
    kept = keep(f"{about} {code_version()} {environment_key(threads)}",
                lambda path: save_file(_learn(checkpoint, tokens, target), path / "tables.safetensors"))  # fmt: skip
    found = load_file(kept / "tables.safetensors")
    return tuple(tables_among(found, str(i)) for i in range(checkpoint.n_blocks))


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
        beyond = [part[:, target.sinks :].flatten(2) for part in (keys, by_keys, values, by_values)]
        tables = _side(target.keys, beyond[0], beyond[1]), _side(target.values, beyond[2], beyond[3])
        found |= named_tables(tables, str(i))
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


def _side(side: CacheGrid, x: torch.Tensor, gradient: torch.Tensor) -> Learned | None:
    return fit_table(side.grid, x, gradient**2) if isinstance(side.grid, LearnedTable) else None


def fit_table(table: LearnedTable, x: torch.Tensor, fisher: torch.Tensor) -> Learned:
    """The table for values (rows, n, channels), and the weight of each.

    Raises `ValueError` where there are no values, as where all tokens are sinks.
    """
    if x.numel() == 0:
        raise ValueError(f"a table takes tokens beyond the sinks, found values of shape {tuple(x.shape)}")
    static = table.ranges == "static"
    if static:  # a channel over all tokens, else a token over its channels
        x, fisher = (part.reshape(-1, x.shape[-1]).T for part in (x, fisher))
    low, high = tails(x, table.outliers)
    outside = (x < low) | (x > high)
    offset, reach = ((high + low) / 2, (high - low) / 2) if static else middle(x, outside)
    offset, reach = (part.clamp(-LARGEST, LARGEST).half() for part in (offset, reach))
    u, weight = normalized(x, offset.to(x.dtype), reach.to(x.dtype)), fisher * reach.to(x.dtype) ** 2
    inside = ~outside if not bool(outside.all()) else outside  # of two channels both are outliers: any table will do
    levels = k_means(u[inside], 2**table.bits, weight[inside]).clamp(-1, 1).half().sort().values
    return Learned(levels, offset[:, 0].contiguous(), reach[:, 0].contiguous()) if static else Learned(levels)
