"""Block tuning: real parameters that are stored anyway are adjusted while codes stay, for the sake of a block's output.

What both QuIP# (Tseng, Chee, Sun, Kuleshov, De Sa 2024, arXiv:2402.04396, section 5) and AQLM (Egiazarian, Panferov,
Kuznedelev, Frantar, Babenko, Alistarh 2024, arXiv:2401.06118, section 3.4) do when the layers of a decoder block are
rounded: scales, codebooks, signs and norm gains descend, by Adam on rows of the calibration tokens, on

    || block(x; tuned) - block(x; unquantized) ||^2 / || block(x; unquantized) ||^2.

Here the state that is kept is the one of least error on rows held out, measured with every parameter rounded to what is
stored, the start included: a block never ends worse than it began on those rows. Both releases keep the state of their
best epoch too, but measure it before it is rounded. QuIP#'s tuning of the whole model against its logits is not here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from typing import Literal

import torch

Values = dict[tuple[str, str], torch.Tensor]  # by module of the block, and what the parameter is called there


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTuning:
    """How a block is tuned. `QUIP_SHARP_TUNING` and `AQLM_TUNING` are as published, for models and data far larger.

    `stream`: on the rows that enter the block in the "quantized" model, against the unquantized block on the same rows
    (AQLM); in the "original" model, the same (QuIP#); or "crossed", the quantized block on the former against the
    unquantized one on the latter, so that what has gone wrong before is made up for.

    A rate of 0 leaves a kind of parameter alone; `relative` rates are in units of the root mean square of each tensor
    at the start. `scale_rate` is for scales and zero points, `codebook_rate` for a grid's other parameters, `sign_rate`
    for the signs of a frame, which then take 16 bits each instead of one, `norm_rate` for the block's norm gains. With
    a `weight_rate` the block is tuned after every site, and the weights that are still to be rounded move too (QuIP#).

    `batch` rows a step; `epochs` at most, and no more after `patience` without a lower error on the `held_out` share of
    the rows. A "cosine" schedule takes the rates to 0 over all epochs.

    The defaults were chosen on the reference model at 2 bits, where an epoch of 112 rows after each of a block's four
    sites takes about a minute in all. 16 bits for a sign buy nothing there that the weights in between do not.
    """

    stream: Literal["quantized", "original", "crossed"] = "crossed"
    scale_rate: float = 1e-2
    codebook_rate: float = 1e-2
    sign_rate: float = 0.0
    norm_rate: float = 1e-2
    weight_rate: float = 1e-2
    relative: bool = True
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Literal["constant", "cosine"] = "cosine"
    batch: int = 2
    epochs: int = 1
    patience: int = 3
    held_out: float = 0.125

    def __post_init__(self) -> None:
        rates = (self.scale_rate, self.codebook_rate, self.sign_rate, self.norm_rate, self.weight_rate)
        if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
            raise ValueError(f"rates {rates}: expected finite numbers, at least 0")
        if not any(rates):
            raise ValueError("all rates are 0: nothing would be tuned")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas}: expected at least 0 and below 1")
        if min(self.batch, self.epochs, self.patience) < 1:
            raise ValueError(f"batch {self.batch}, epochs {self.epochs}, patience {self.patience}: expected at least 1")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out {self.held_out}: expected a share between 0 and 1")

    def rate_of(self, parameter: str) -> float:
        """The rate of a parameter: a `weight`, a norm's `gain`, or what `Quantized.tunable` calls it."""
        if parameter.startswith("frame."):
            return self.sign_rate
        if parameter.startswith("grid."):
            return self.scale_rate if parameter in ("grid.scale", "grid.zero") else self.codebook_rate
        return {"weight": self.weight_rate, "gain": self.norm_rate}[parameter]

    def split(self, rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows to descend on and rows held out, at least one of each; `ValueError` for fewer than two rows."""
        if rows < 2:
            raise ValueError(f"tuning a block holds rows out: expected at least 2 calibration rows, found {rows}")
        drawn = torch.randperm(rows, generator=generator)
        held = min(rows - 1, max(1, round(self.held_out * rows)))
        return drawn[held:], drawn[:held]


# quantize_llama/quantize_finetune_llama.py and example.sh of Cornell-RelaxML/quip-sharp@1d8f873e: 384 rows, 128 of them
# held out, steps of 2 batches of 4; what Adam does with its betas left alone. Norms and weights share a rate.
QUIP_SHARP_TUNING = BlockTuning(
    stream="original", scale_rate=0.0, codebook_rate=0.0, sign_rate=5e-4, norm_rate=5e-5, weight_rate=5e-5,
    relative=False, betas=(0.9, 0.999), schedule="constant", batch=8, epochs=5, patience=3, held_out=1 / 3,
)  # fmt: skip

# main.py and the README's command of Vahe1994/AQLM@e79a896e: 1024 rows, 128 of them held out.
AQLM_TUNING = BlockTuning(
    stream="quantized", scale_rate=1e-5, codebook_rate=1e-5, sign_rate=0.0, norm_rate=1e-5, weight_rate=0.0,
    relative=False, betas=(0.9, 0.95), schedule="constant", batch=32, epochs=10, patience=3, held_out=1 / 8,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Descent:
    """The values that are kept, and the errors on held-out rows, relative and as stored: at the start, by epoch."""

    values: Values
    errors: tuple[float, ...]

    @property
    def best(self) -> int:
        """The epoch whose values are kept, 0 for the start; the first of equal ones."""
        return min(range(len(self.errors)), key=lambda epoch: (math.isnan(self.errors[epoch]), self.errors[epoch]))


def descend(
    start: Values,
    gradient: Callable[[Values, torch.Tensor], Values],
    error: Callable[[Values], float],
    rows: torch.Tensor,
    how: BlockTuning,
    generator: torch.Generator,
) -> Descent:
    """Adam from `start` over `rows` (n,), dealt out anew for every epoch.

    `gradient(values, rows)` is that of the training error on some rows, `error(values)` the held-out error of values as
    they would be stored, NaN or infinite where they cannot be. Steps that lead there end the descent.
    """
    values = {name: x.detach().clone() for name, x in start.items()}
    groups = [{"params": [x], "lr": _rate(how, name[1], x)} for name, x in values.items()]
    adam = torch.optim.Adam(groups, betas=how.betas)
    peaks = [float(group["lr"]) for group in adam.param_groups]
    per_epoch = -(-len(rows) // how.batch)
    kept, errors, step = dict(start), [error(values)], 0
    for _ in range(how.epochs):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(how.batch):
            for group, peak in zip(adam.param_groups, peaks, strict=True):
                group["lr"] = peak * _share(how, step / (how.epochs * per_epoch))
            found = gradient(values, batch)
            for name, x in values.items():
                x.grad = found[name]
            adam.step()
            step += 1
        errors.append(error(values))
        if errors[-1] < min(errors[:-1]):
            kept = {name: x.clone() for name, x in values.items()}
        if not math.isfinite(errors[-1]) or _stale(errors) >= how.patience:
            break
    return Descent(kept, tuple(errors))


def _rate(how: BlockTuning, parameter: str, x: torch.Tensor) -> float:
    """Adam does not see the size of gradients: a rate in units of the values is a rate for values in those units."""
    return how.rate_of(parameter) * (float(x.double().square().mean().sqrt()) if how.relative else 1.0)


def _share(how: BlockTuning, done: float) -> float:
    return 1.0 if how.schedule == "constant" else 0.5 * (1 + cos(pi * done))


def _stale(errors: list[float]) -> int:
    """Epochs since the least error."""
    return len(errors) - 1 - errors.index(min(errors))
