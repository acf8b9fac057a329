"""How fast a model generates, beside the unquantized one and beside what the memory allows.

Models take turns, round after round, so that what else the machine does disturbs all alike; ratios are taken within a
round. One token's products read all weights and the keys and values so far: bytes over the measured bandwidth of
reading are the least time that a token can take on weights that no cache holds, the *roofline*.
"""

import statistics
from dataclasses import dataclass
from functools import partial

import torch

from suite.runtime.choice import seconds
from suite.runtime.generation import Generated, generate
from suite.runtime.model import Runtime

_READ = 1 << 28  # bytes: no cache of a CPU or a GPU holds them
_LAYERS = 1 << 3  # repeats of every layer's product that overhead is measured in


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Of one value or more."""
        low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(statistics.median(values), low, high)

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens per second of one model: over a prompt (`prefill`) and one after the other behind it (`decode`).

    `token_bytes` are those of weights, and of keys and values in the middle of the text, that a token reads.
    """

    prefill: Spread
    decode: Spread
    token_bytes: int

    def roofline(self, bandwidth: float) -> float:
        """Tokens per second that `bandwidth`, in bytes per second, allows."""
        return bandwidth / self.token_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Speeds by name of the model, ratios to the last one's within a round, and the best bandwidth of reading."""

    speeds: dict[str, Speed]
    decode_ratio: dict[str, Spread]
    prefill_ratio: dict[str, Spread]
    bandwidth: float


def race(runtimes: dict[str, Runtime], prompt: torch.Tensor, tokens: int, rounds: int) -> Race:
    """Have models generate `tokens` (2 or more) behind `prompt` (n,), in turns; the first of all rounds warms up.

    Raises `ValueError` for what `generate` refuses, fewer than 2 tokens, and no rounds.
    """
    if tokens < 2 or rounds < 1:
        raise ValueError(f"{tokens} tokens in {rounds} rounds: expected at least 2 in 1")
    device = next(iter(runtimes.values())).device
    block = torch.ones(_READ // 4, device=device)
    bandwidths, turns = [], []
    for _ in range(rounds + 1):
        bandwidths.append(block.nbytes / seconds(block.sum, device))
        turns.append({name: generate(runtime, prompt, tokens) for name, runtime in runtimes.items()})
    del turns[0]
    rates = {name: [_rates(turn[name], len(prompt)) for turn in turns] for name in runtimes}
    last = rates[list(runtimes)[-1]]
    prefill_ratio, decode_ratio = (
        {name: Spread.of([a[i] / b[i] for a, b in zip(found, last, strict=True)]) for name, found in rates.items()}
        for i in (0, 1)
    )
    speeds = {
        name: Speed(prefill=Spread.of([rate[0] for rate in found]), decode=Spread.of([rate[1] for rate in found]),
                    token_bytes=runtimes[name].token_bytes + _cache_bytes(turns[-1][name], len(prompt)))
        for name, found in rates.items()
    }  # fmt: skip
    return Race(speeds=speeds, decode_ratio=decode_ratio, prefill_ratio=prefill_ratio, bandwidth=max(bandwidths))


def _rates(found: Generated, prompt: int) -> tuple[float, float]:
    """Tokens per second of prefill and decode."""
    return prompt / found.prefill_seconds, len(found.step_seconds) / sum(found.step_seconds)


def _cache_bytes(found: Generated, prompt: int) -> int:
    """What is read of a cache in the middle of the tokens, by what it holds at the end."""
    steps = len(found.step_seconds)
    return round(found.cache_bytes * (prompt + steps / 2) / (prompt + steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Seconds of one token: in the `products` alone, and in whole packed `layers`, the modules around them."""

    products: float
    layers: float

    @property
    def share(self) -> float:
        """What packed layers take beside their products, in units of these."""
        return self.layers / self.products - 1


@torch.no_grad()
def overhead(runtime: Runtime) -> Overhead:
    """Time every packed layer on one token, and its bare product in turns with it; medians, added up over layers.

    Between two turns of a layer all others have theirs, so that weights come from memory as they do in decoding. Raises
    `ValueError` for a model without packed layers.
    """
    layers = list(runtime.packed_layers.values())
    if not layers:
        raise ValueError("overhead of packed layers: the model has none")
    assert runtime.chooser is not None
    inputs = [torch.randn(1, layer.in_features).to(runtime.device, runtime.chooser.dtype) for layer in layers]
    calls = [(layer.by_rows.at(1).bare(x), partial(layer, x)) for layer, x in zip(layers, inputs, strict=True)]
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in layers]
    for _ in range(_LAYERS + 1):
        for kind in (0, 1):
            for call, taken in zip(calls, times, strict=True):
                taken[kind].append(seconds(call[kind], runtime.device))
    products, whole = (sum(statistics.median(taken[kind][1:]) for taken in times) for kind in (0, 1))
    return Overhead(products=products, layers=whole)
