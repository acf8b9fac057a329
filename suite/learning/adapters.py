"""A whole model with quantized weights that stay as they are, and side branches that are trained beside them.

Weights are held as the bytes that they are stored in, and decoded whenever a product needs them, forth and back, so
that training takes little more memory than the packed model does.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from suite.adaptation.low_rank import LowRank, begun
from suite.adaptation.training import AdamW, Loss, train
from suite.grids.integer import FittedInteger
from suite.learning.objective import objective
from suite.learning.student import KEPT, Report, whole_model
from suite.models.architecture import linear
from suite.models.checkpoint import Checkpoint
from suite.quantize import generator_for
from suite.quantized import Quantized
from suite.recipe import Recipe
from suite.side import LowRankSide


def adapters_of(recipe: Recipe) -> LowRank:
    """How a recipe trains side branches; `ValueError` for one that does not."""
    how = recipe.adaptation
    if not isinstance(how, LowRank) or how.schedule is None:
        raise ValueError(f"expected a recipe with a LowRank that has a schedule, found {recipe}")
    return how


class _Product(torch.autograd.Function):
    """x W^T with a W that is decoded for it, and once more for the gradient of x; W has none."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, decoded: Callable[[], torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        ctx.decoded = decoded
        return x @ decoded().T

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient @ ctx.decoded(), None


class Branch(nn.Module):
    """s B A x, in place of a weight: inputs (.., in) to outputs (.., out).

    With the group of every input, `owner` (in,), A takes the sums of groups. An elastic branch has two more paths,
    whose factors begin at 0: inputs in `rank` runs, averaged, are added to A x, and each number of the sum to a run of
    outputs (Qin, Ma, Zheng, Li, Zhang, Liu, Luo, Liu, Magno 2024, "Accurate LoRA-Finetuning Quantization of LLMs via
    Information Retention", arXiv:2402.05445, section 3.3).
    """

    owner: torch.Tensor
    share: torch.Tensor
    paths: torch.Tensor

    def __init__(self, A: torch.Tensor, B: torch.Tensor, scale: float, owner: torch.Tensor | None, elastic: bool):
        super().__init__()
        self.A, self.B, self.scale, self.pooled = nn.Parameter(A), nn.Parameter(B), scale, owner is not None
        self.factors = nn.Parameter(torch.zeros(2, dtype=A.dtype)) if elastic else None
        rank, n_in, n_out = len(A), A.shape[1], len(B)
        if owner is not None:
            self.register_buffer("owner", owner, persistent=False)
        if elastic:  # places of what is added to A and B, in both flattened, one for each input and output
            runs, channels = run_of(n_in, rank), torch.arange(n_in)
            paths = torch.cat([runs * n_in + channels, torch.arange(n_out) * rank + run_of(n_out, rank)])
            self.register_buffer("paths", paths, persistent=False)
            self.register_buffer("share", (1 / torch.bincount(runs).to(A))[runs], persistent=False)

    def merged(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (rank, inputs or groups) and B (out, rank) with everything in them: the branch is B A x."""
        A: torch.Tensor = self.A
        B: torch.Tensor = self.B
        if self.factors is not None:
            into, out = self.paths.split([A.shape[1], len(B)])
            A = A.flatten().index_add(0, into, self.factors[0] * self.share).view_as(A)
            B = B.flatten().index_add(0, out, self.factors[1].expand(len(out))).view_as(B)
        return A, self.scale * B

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (.., in) as the sums of groups, (.., groups)."""
        if bool((self.owner.diff() < 0).any()):
            x = x[..., self.owner.argsort(stable=True)]
        sizes = torch.bincount(self.owner)
        groups, size = len(sizes), int(sizes.max())
        x = nn.functional.pad(x, (0, groups * size - x.shape[-1]))  # the last group alone may be short
        return x.unflatten(-1, (groups, size)).sum(-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The branch's outputs."""
        A, B = self.merged()
        return (self.sums(x) if self.pooled else x) @ A.T @ B.T


def run_of(n: int, rank: int) -> torch.Tensor:
    """Which of `rank` runs, as even as can be, each of `n` channels is in: (n,); some have none where rank is above."""
    return torch.arange(n) * rank // n


class FrozenLinear(nn.Module):
    """A linear layer of stored bytes with a trained branch beside it."""

    def __init__(self, found: Quantized, branch: Branch, bias: torch.Tensor | None, dtype: torch.dtype):
        super().__init__()
        plain = replace(found, side=None)
        self._header, self._dtype = plain.header(), dtype
        payload = torch.frombuffer(bytearray(plain.to_bytes()), dtype=torch.uint8)
        self.register_buffer("payload", payload, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.branch = branch

    def weight(self) -> torch.Tensor:
        """The frozen weights (out, in)."""
        return self.quantized().dequantize().to(self._dtype)

    def quantized(self) -> Quantized:
        """The frozen weights as they are stored, without a side branch."""
        return Quantized.from_bytes(self.payload.numpy().tobytes(), self._header)  # type: ignore[operator, union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (.., in) to outputs (.., out)."""
        y = _Product.apply(x, self.weight) + self.branch(x)
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class Adapted:
    """A model of frozen quantized layers with branches, and the teacher that it learns from, if any."""

    checkpoint: Checkpoint
    recipe: Recipe
    model: nn.Module
    layers: dict[str, FrozenLinear]
    update: AdamW
    teacher: nn.Module | None

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, recipe: Recipe, seed: int, base: Mapping[str, Quantized],
        pages: Path | None = None,
    ) -> "Adapted":  # fmt: skip
        """The model with the layers of `base` in place of its own, by full name, and branches that begin as theirs.

        Optimizer states lie in the directory `pages`, if there is one, instead of in memory.
        """
        how = adapters_of(recipe)
        assert how.schedule is not None
        model = whole_model(checkpoint)
        teacher = copy.deepcopy(model).eval() if how.distills else None
        for whole in filter(None, (model, teacher)):
            whole.requires_grad_(False)
        layers: dict[str, FrozenLinear] = {}
        for name, found in base.items():
            module = linear(model, name)
            branch = branch_of(found, how, generator_for(seed, f"{name}/adapter"), checkpoint.dtype)
            layers[name] = FrozenLinear(found, branch, module.bias, checkpoint.dtype)
            owner, _, own = name.rpartition(".")
            setattr(model.get_submodule(owner), own, layers[name])
        return cls(checkpoint, recipe, model, layers, AdamW(model, how.schedule, pages=pages),
                   teacher)  # fmt: skip

    def loss(self, rows: torch.Tensor, seed: int) -> Loss:
        """The loss of a micro-batch of `rows` (n, length), by its number."""
        return objective(self.model, self.teacher, adapters_of(self.recipe), rows, seed)

    def train(self, rows: torch.Tensor, seed: int, state: Path | None, report: Report) -> torch.Tensor:
        """Go through the schedule on rows (n, length), taking up what `state` holds; the losses, float64."""
        schedule = adapters_of(self.recipe).schedule
        assert schedule is not None
        losses = train(self.model, self.loss(rows, seed), schedule, update=self.update, checkpoint=state, every=KEPT,
                       after=report)  # fmt: skip
        return torch.tensor(losses, dtype=torch.float64)

    @torch.no_grad()
    def stored(self) -> dict[str, Quantized]:
        """The layers by full name as they are stored: with their branches, or these merged into zero points."""
        return {name: as_stored(layer.quantized(), layer.branch) for name, layer in self.layers.items()}

    @torch.no_grad()
    def rounding(self) -> float:
        """|W' - W|^2 / |W|^2 of what is stored against what was trained, W, over all layers: what storing costs."""
        squares = torch.zeros(2, dtype=torch.float64)
        for layer in self.layers.values():
            W = layer.quantized().dequantize().double() + dense(layer.branch)
            kept = as_stored(layer.quantized(), layer.branch).dequantize().double()
            squares += torch.stack([(kept - W).square().sum(), W.square().sum()])
        return float(squares[0] / squares[1])


def branch_of(found: Quantized, how: LowRank, generator: torch.Generator, dtype: torch.dtype) -> Branch:
    """A branch as training begins with it: of zeros, or the side that the layer has."""
    n_out, n_in = found.grid.shape
    owner = None
    if how.pooled:
        assert isinstance(found.grid, FittedInteger)  # `Recipe.unsupported` refuses others
        owner = groups_of(found.grid)
    A, B = begun(n_out, n_in if owner is None else int(owner.max()) + 1, how.adapters.rank, generator)
    if found.side is not None:
        A, B = found.side.A, found.side.B.float() / how.adapters.scale
    return Branch(A.to(dtype), B.to(dtype), how.adapters.scale, owner, how.elastic)


def groups_of(fitted: FittedInteger) -> torch.Tensor:
    """Which group of a row each input is in, (in,)."""
    index = torch.arange(fitted.scale.shape[1]).expand(fitted.scale.shape)
    return fitted.layout.expand(index)[0].expand(fitted.shape[1]).clone()  # not a view of all rows


def dense(branch: Branch) -> torch.Tensor:
    """What a branch comes to as weights (out, in), float64."""
    A, B = (x.detach().double() for x in branch.merged())
    return B @ A if not branch.pooled else (B @ A)[:, branch.owner]


def as_stored(found: Quantized, branch: Branch) -> Quantized:
    """A layer with its branch in float16 beside it; a pooled branch is merged into the zero points instead.

    A branch that is the same for all inputs of a group shifts the group's zero point by it, in units of the scale (Xu,
    Xie, Gu, Chen, Chang, Zhang, Chen, Zhang, Tian 2023, QA-LoRA, arXiv:2309.14717, section 3.3): exactly so but for the
    type that zero points are stored in.
    """
    A, B = branch.merged()
    if not branch.pooled:
        return replace(found, side=LowRankSide.stored(A, B))
    return merged(found, B.double() @ A.double()).as_stored()


def merged(found: Quantized, shift: torch.Tensor) -> Quantized:
    """A layer of integers with `shift` (out, groups) added to every weight of a group, by its zero point."""
    grid = found.grid
    assert isinstance(grid, FittedInteger) and grid.zero is not None
    scale = grid.scale.double()
    return replace(found, grid=grid.tuned({"scale": scale, "zero": grid.zero.double() - shift / scale}))
