"""What the result store holds, one frozen value for a row of each of its tables. Imports no torch.

A measurement that does not apply is None. `suite.store` reads and writes them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Status = Literal["ok", "skipped", "failed"]
VOLATILE = ("seconds", "peak_mib", "tokens_per_second", "started")  # everything else is reproducible bit for bit


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a cell produced, one field per column of the store; a measurement that does not apply is None.

    Rates (`bpw...`) are bits per weight of the decoder blocks' linear layers. `ppl_se`, `kl_se` and `top1_se` are
    standard errors of the paired difference to the unquantized model on the same tokens, clustered by source file
    where there is one, else by row. `kl` is in nats. `bound` is a number that `hnmse` cannot exceed, from steps and
    Gram matrices; values that are clipped count in it with what they miss.
    """

    cell: str
    code: str
    env: str
    status: Status
    reason: str | None = None
    model: str
    model_sha256: str
    data_sha256: str
    method: str
    recipe: str
    bits: float | None = None
    bpw: float | None = None
    bpw_entropy: float | None = None
    bpw_coded: float | None = None
    model_bytes: int | None = None
    ppl: float | None = None
    ppl_se: float | None = None
    ppl_base: float | None = None
    kl: float | None = None
    kl_se: float | None = None
    kl_p99: float | None = None
    top1: float | None = None
    top1_se: float | None = None
    nmse: float | None = None
    hnmse: float | None = None
    bound: float | None = None
    accuracy: float | None = None
    cache_bytes: int | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    peak_mib: float | None = None
    seed: int
    fallbacks: tuple[str, ...] = ()
    command: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """One linear layer of one cell: its shape, the group that was really used, exact bits, errors against W.

    `n_bits` are stored; `entropy_bits` and `coded_bits` are with the codes at their entropy, and really entropy-coded.

    The errors are relative to `weight_energy` = |W|^2 and `output_energy` = tr(W H W^T), by which layers are pooled.
    Of a trained cell W are its own trained weights, before they are rounded, and H is of the trained model.
    """

    layer: str
    n_out: int
    n_in: int
    group_size: int
    n_bits: int
    entropy_bits: float
    coded_bits: int
    nmse: float
    hnmse: float
    weight_energy: float
    output_energy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """What a rate-distortion floor of one layer needs: the eigenvalues of H = X^T X / n, Var W and tr(W H W^T)."""

    layer: str
    n_out: int
    variance: float
    energy: float
    eigenvalues: np.ndarray  # (n_in,), float64, ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How often the codes of one alphabet occur in a cell's decoder blocks; most grids have one alphabet.

    `levels` (n,), ascending, are what the codes stand for in units of their scale, `counts` (n,) how many there are.
    """

    stream: int
    levels: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedSize:
    """What one matrix of a model takes in one number format under one coder.

    `format` is "fp32", "bf16" or "fp8", or a method's name with its `recipe`, nominal `bits` and `group` ("32", "row",
    "tensor", or "" where it has none). `coder` is "fixed", "entropy" (of order 0), a coder's name, or for floating
    point the part, "sign", "exponent" or "mantissa", whose entropy it is. `n_bits` is all that is left, of which
    `beside_bits` (scales and the like) are not coded; of a part, that part's alone.
    """

    model: str
    model_sha256: str
    layer: str
    format: str
    recipe: str
    bits: float
    group: str
    coder: str
    n_weights: int
    n_bits: float
    beside_bits: int
    nmse: float
    code: str
    env: str
    command: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightShape:
    """How one matrix's weights are distributed: counts (1024,) of w / rms over [-16, 16], the outer bins open."""

    model: str
    model_sha256: str
    layer: str
    n_weights: int
    rms: float
    counts: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierRow:
    """How far from even a layer's inputs or weights are, in `coordinates`, a short name for a recipe's `transforms`.

    `tensor` is "inputs", whose `layer` is the first that reads them, or "weights". The figures are those of
    `suite.outliers.metrics`, `incoherence` of the inputs that of their Gram matrix's eigenvectors; `normal` and
    `massive` count the channels, of `n_channels`, that hold such outliers, inputs' alone. None is not a number.
    """

    model: str
    model_sha256: str
    data_sha256: str
    layer: str
    coordinates: str
    transforms: str
    tensor: Literal["inputs", "weights"]
    n_channels: int
    kurtosis: float | None
    max_to_median: float | None
    incoherence: float | None
    dynamic_range: float | None
    normal: int | None
    massive: int | None
    code: str
    env: str
    command: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothingRow:
    """Dynamic ranges of a site's inputs and weights after SmoothQuant's scaling at `alpha`, and the error of rounding.

    `layer` is the first of the site; `error` is the output error, relative, with both at `bits`.
    """

    model: str
    model_sha256: str
    data_sha256: str
    layer: str
    alpha: float
    bits: int
    inputs: float | None
    weights: float | None
    error: float | None
    code: str
    env: str
    command: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SalienceRow:
    """The `share` of a layer's output error at `bits` that the `protected` part of weights or channels carries.

    They are the first by `criterion`, in about the `fraction` asked for; `protected` is the fraction that it is.
    """

    model: str
    model_sha256: str
    data_sha256: str
    layer: str
    coordinates: str
    transforms: str
    criterion: str
    fraction: float
    bits: int
    protected: float
    share: float | None
    code: str
    env: str
    command: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRow:
    """How fast a packed model generated, in turns with the unquantized one in bfloat16, whose figures are `base_...`.

    `product` is what was asked for, and `products` JSON of how many layers took which, with the measurements that
    decided it. Rates are tokens per second, of a prompt (`prefill`) and of one token after the other (`decode`), and
    like ratios to the base, within a round, they are medians over `rounds` with quartiles `_low` and `_high`.
    `token_bytes` are read for a token: weights, and keys and values in the middle of the text; `bandwidth`, bytes per
    second, is that of reading memory, measured in between. `overhead` is what packed layers take beside their products,
    as a share of these. What needs a base that is not to be had is None.
    """

    model: str
    model_sha256: str
    base_sha256: str
    method: str
    recipe: str
    bits: float | None
    seed: int
    device: str
    threads: int
    product: str
    products: str
    prompt: int
    tokens: int
    rounds: int
    prefill: float
    prefill_low: float
    prefill_high: float
    decode: float
    decode_low: float
    decode_high: float
    base_prefill: float | None
    base_decode: float | None
    prefill_ratio: float | None
    decode_ratio: float | None
    decode_ratio_low: float | None
    decode_ratio_high: float | None
    token_bytes: int
    base_token_bytes: int | None
    bandwidth: float
    overhead: float | None
    fallbacks: str
    code: str
    env: str
    command: str
    started: str

    @property
    def roofline(self) -> float:
        """Tokens per second that the bandwidth allows where no cache holds weights."""
        return self.bandwidth / self.token_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """How the model of a cell was trained, against its control: the unquantized model trained equally.

    `tokens` and `operations` (multiplications and additions of matrix products) of one training; `loss_nats` is the
    mean over the last tenth of the updates. `ppl_control` and `excess_nats`, the cell's loss over its control's, are on
    the evaluation tokens, the latter with the standard error of the paired difference. `moved` is |W' - W|^2 / |W|^2 of
    the weights that are quantized, before they are rounded, and `moved_control` the control's; where weights stay and
    adapters are trained beside them there is no `moved`. `rounding` is the same ratio of what is stored against what
    was trained, where adapters are rounded to float16, or merged into zero points. `turning` is the share of codes that
    changed back against their last change within the last `window` updates, and `disorder` the share of successive
    gradients of learned scales whose signs differ, in the mean over matrices.
    """

    cell: str
    code: str
    env: str
    updates: int
    tokens: int
    operations: int
    loss_nats: float
    ppl_control: float
    excess_nats: float
    excess_se: float
    moved: float | None
    moved_control: float | None
    rounding: float | None
    turning: float | None
    disorder: float | None
    window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """What a training holds, in bytes, "measured" in a process of its own or "predicted" by `suite.memory.formula`.

    `model_sha256` is empty where there is a model's shape alone. A micro-batch is `rows` of `length` tokens; weights,
    gradients and activations are of numbers of `width` bytes. `adapters` are whatever is trained that the model does
    not have, learned scales among them. `activations` are kept for the backward pass, with `checkpointing` those of one
    block after the other. `paged` optimizer states are counted in `states`, but are not resident at the `peak`, which
    is the highest while updates are made.
    """

    model: str
    model_sha256: str
    method: str
    recipe: str
    bits: float | None
    kind: Literal["measured", "predicted"]
    rows: int
    length: int
    width: int
    checkpointing: bool
    paged: bool
    weights: int
    adapters: int
    gradients: int
    states: int
    activations: int
    peak: int
    code: str
    env: str
    command: str
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRow:
    """What a cell gained on the text it is evaluated on, and forgot of another `text`, of so many predicted `tokens`.

    All are differences of mean losses in nats with standard errors, paired by token and clustered as a record's are:
    `gained` of the unquantized model before training over the cell, on the evaluation text; `forgotten` of the cell
    over that model, on the other; `..._control` the same of the cell's control. `excess` is the cell over its control
    on the other text: what was forgotten by being quantized. `ppl...` are of the other text. What was not trained has
    no control; None is also what needs the unquantized model where that is not to be had.
    """

    cell: str
    code: str
    env: str
    text: str
    text_sha256: str
    tokens: int
    ppl: float
    ppl_base: float | None
    ppl_control: float | None
    gained_nats: float | None
    gained_se: float | None
    gained_control_nats: float | None
    gained_control_se: float | None
    forgotten_nats: float | None
    forgotten_se: float | None
    forgotten_control_nats: float | None
    forgotten_control_se: float | None
    excess_nats: float | None
    excess_se: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRow:
    """A model of a scaling study: a cell, with what sizes are compared by.

    `parameters` are all of the model's, `linear` those of the linear layers in its blocks, which have `bits`; what else
    there is has 16, and so has everything of a full-precision model. `tokens` are those of all its trainings, `level`
    what was asked for of them for a parameter; `updates` of `batch_rows` rows at the peak `rate` are the last
    training's. `loss_nats` is the mean over evaluation tokens with `loss_se`, clustered by source file: it is of which
    text there happens to be, most of which all models share, where `TrainingRow.excess_se` is of a difference.
    """

    cell: str
    code: str
    env: str
    method: str
    bits: float
    hidden: int
    level: float
    parameters: int
    linear: int
    tokens: int
    updates: int
    batch_rows: int
    rate: float
    loss_nats: float
    loss_se: float
    model_bytes: int
    model_sha256: str
    data_sha256: str
    seed: int
    command: str
    started: str

    @property
    def tokens_per_parameter(self) -> float:
        """Of all parameters."""
        return self.tokens / self.parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningRow:
    """What a model makes of `problems` problems of `steps` steps, drawn by `seed` (`suite.reasoning`).

    Shares that are right: the `answer` a model reaches by itself, all that it writes (`right`), a `step` given the true
    ones before, a step's `value` given its left side too. `by_place` is JSON of `step` by the step's place,
    `independent` their product, what independent errors would give, and `excess` is `right` over it. `nats` are of a
    written character. `..._se` are standard errors over problems.

    Of a packed model `..._base` are the unquantized one's, and `..._change_se` standard errors of the paired difference
    to it; like what else does not apply they are None. `ppl` is of the text `data_sha256`, with `ppl_se` as in records.
    """

    model: str
    model_sha256: str
    base_sha256: str
    method: str | None
    recipe: str | None
    bits: float | None
    bpw: float | None
    quantized_seed: int | None
    ppl: float | None
    ppl_base: float | None
    ppl_se: float | None
    data_sha256: str | None
    problems_sha256: str
    seed: int
    steps: int
    problems: int
    answer: float
    answer_se: float
    answer_base: float | None
    answer_change_se: float | None
    right: float
    right_se: float
    right_base: float | None
    right_change_se: float | None
    step: float
    step_se: float
    step_base: float | None
    step_change_se: float | None
    value: float
    value_se: float
    independent: float
    independent_se: float
    excess: float
    excess_se: float
    by_place: str
    nats: float
    nats_se: float
    device: str
    threads: int
    fallbacks: str
    code: str
    env: str
    command: str
    started: str
