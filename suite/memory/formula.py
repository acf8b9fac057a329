"""How many bytes a training takes, from a model's configuration alone: a LLaMA decoder, every term by its origin.

With n tokens in a micro-batch of `rows` by `length`, hidden size h, m of the MLP, q and k channels of all queries and
of all keys, H heads, V tokens in the vocabulary, and w bytes for a number in the type that products are computed in:

A block keeps for its gradients, where all of it is trained,

- of each of two norms, computed in float32: its input 4 n h, its inverse root mean square 4 n, the normalized values
  that its gain is multiplied with w n h, and the product w n h, which linear layers read;
- of attention: queries and keys after their rotation and values w n (q + 2 k), its output w n q, which the next layer
  reads too, and the logarithms of its denominators 4 n H. Scores are not kept (Dao, Fu, Ermon, Rudra, Re 2022,
  "FlashAttention", arXiv:2205.14135; `scaled_dot_product_attention` does the same on a CPU);
- of the MLP: the gate, its SiLU, the other factor, and the product that the last layer reads, 4 w n m.

Once: the last norm, as above; the logarithms of probabilities of the n' = rows (length - 1) tokens that are predicted,
w n' V; cosines and sines 2 w length d, d channels of a head; token numbers, 8 bytes each; and a sum of weights, w.

Quantization-aware training keeps for every weight the rounded value w, which the layer's product needs, the level and
the level before rounding, 2 w, which the scale's gradient needs (the first alone where gradients take codes for
constants), and a byte for whether it was clipped.

Of frozen weights nothing is kept, as those that are packed are decoded anew in the backward pass: what is left of a
norm is its input and root, and what adapters read. A branch B A of rank r keeps what it reads (its groups' sums, if it
sees these), A x, w n r, and s B, w r out. Adapters within the quantizer are computed again in the backward pass, and
keep what their layer reads. The first norm, whose input is a frozen embedding, keeps neither that nor the root.

Gradients are of what is trained, and AdamW's states two float32 numbers for each of these, and 4 bytes a tensor.

The peak is what is always there and the largest of: logits and their copy above what is kept, (n + n') V w, after the
last forward product, and again as gradients at the head; gradients and two temporaries of the largest tensor in the
optimizer's step; and what is computed anew in the backward pass, above all that is kept or all gradients: one layer,
decoded, or adapted and rounded, and with checkpointing one block's tensors (Chen, Xu, Zhang, Guestrin 2016, "Training
Deep Nets with Sublinear Memory Cost", arXiv:1604.06174). Left out are temporaries of decoding and rounding a layer,
which here are some 24 bytes for each of its weights, and would be none in a fused kernel. Imports no torch.
"""

import math
from dataclasses import dataclass

WIDE = 4  # bytes of what is float32 in any training: norms, denominators, states
INDEX = 8  # bytes of the number of a token or a channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a LLaMA model; `kv` are channels of all keys, `head` those of one head."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv: int
    head: int
    tied: bool = False

    @property
    def queries(self) -> int:
        """Channels of all queries."""
        return self.heads * self.head

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of a block's layers: queries, keys, values, output, gate, up, down."""
        h, m, q, k = self.hidden, self.intermediate, self.queries, self.kv
        return (q, h), (k, h), (k, h), (h, q), (m, h), (m, h), (h, m)

    @property
    def outside(self) -> tuple[int, ...]:
        """Numbers of every tensor that is no linear layer of a block."""
        ends = (self.vocabulary * self.hidden,) * (1 if self.tied else 2)
        return *ends, *(self.hidden for _ in range(2 * self.layers + 1))

    @property
    def parameters(self) -> int:
        """All of the model's."""
        return sum(self.outside) + self.layers * sum(n_out * n_in for n_out, n_in in self.linears)


# Touvron et al. 2023, "Llama 2", arXiv:2307.09288, and for 65b "LLaMA", arXiv:2302.13971, with the released
# configurations' intermediate sizes
LLAMAS = {
    "7b": Shape(vocabulary=32000, hidden=4096, intermediate=11008, layers=32, heads=32, kv=4096, head=128),
    "13b": Shape(vocabulary=32000, hidden=5120, intermediate=13824, layers=40, heads=40, kv=5120, head=128),
    "65b": Shape(vocabulary=32000, hidden=8192, intermediate=22016, layers=80, heads=64, kv=8192, head=128),
    "70b": Shape(vocabulary=32000, hidden=8192, intermediate=28672, layers=80, heads=64, kv=1024, head=128),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Groups of `size` weights of a row, None for all of it, or of the `flat` matrix."""

    size: int | None
    flat: bool = False

    def count(self, n_out: int, n_in: int) -> int:
        """Of a matrix (out, in)."""
        if self.flat:
            return math.ceil(n_out * n_in / (self.size or n_out * n_in))
        return n_out * math.ceil(n_in / (self.size or n_in))


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Weights held as they are stored: `bits` each, `beside` bits for every group.

    `doubled` of a group's numbers are themselves scaled, in blocks of 256, by a float32, after a float32 mean is taken
    off the first (double quantization).
    """

    bits: int
    groups: Groups
    beside: int
    doubled: int = 0

    def n_bytes(self, n_out: int, n_in: int) -> int:
        """Of a matrix (out, in)."""
        groups = self.groups.count(n_out, n_in)
        outer = 32 * self.doubled * math.ceil(groups / 256) + (32 if self.doubled else 0)
        return math.ceil((self.bits * n_out * n_in + self.beside * groups + outer) / 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fake:
    """Rounding within training.

    `tensors` as large as the weights are kept for gradients, and `aside` tensors and bytes of the size of the scales.
    Of every group so many numbers are `learned`.
    """

    groups: Groups
    tensors: int
    learned: int = 1
    aside: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Adapters of `rank`: beside the weights, seeing `pooled` inputs, with `elastic` paths; or `inside` a quantizer."""

    rank: int
    pooled: int | None = None
    elastic: bool = False
    inside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What of a method takes memory; by default it trains everything by backpropagation, rounding nothing.

    Without `backward` gradients come from forward passes alone. With a `branch` nothing else is trained but scales.
    """

    backward: bool = True
    packed: Packed | None = None
    fake: Fake | None = None
    branch: Branch | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Bytes of a training, by what they hold; `adapters` are whatever is trained that the model does not have."""

    weights: int
    adapters: int
    gradients: int
    states: int
    activations: int
    peak: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A micro-batch of `rows` by `length` tokens, `width` bytes for weights, gradients and activations."""

    rows: int
    length: int
    width: int = 4
    checkpointing: bool = False
    paged: bool = False

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.rows * self.length

    @property
    def predicted(self) -> int:
        """Tokens that have a loss."""
        return self.rows * (self.length - 1)


def memory_of(shape: Shape, plan: Plan, setting: Setting) -> Parts:
    """Bytes of a training, part by part."""
    w = setting.width
    adapters = shape.layers * sum(sum(_beside(plan, *size)) for size in shape.linears)
    trained = _trained(shape, plan)
    gradients = w * sum(trained) if plan.backward else 0
    states = sum(2 * WIDE * n + WIDE for n in trained) if plan.backward else 0
    weights = w * sum(shape.outside) + _linear_bytes(shape, plan, w) + w * shape.head  # frequencies of rotations
    kept, again = _activations(shape, plan, setting)
    resident = 2 * WIDE * max(trained, default=0) if setting.paged and plan.backward else states
    beside = w * adapters + _constants(shape, plan, w)
    always = weights + beside + resident
    return Parts(weights=weights, adapters=beside, gradients=gradients, states=states, activations=kept,
                 peak=always + _above(shape, plan, setting, kept, again, gradients, trained))  # fmt: skip


def _above(
    shape: Shape, plan: Plan, setting: Setting, kept: int, again: int, gradients: int, trained: list[int]
) -> int:
    """The most that there is beside what is always there."""
    w, V = setting.width, shape.vocabulary
    head = kept + w * V * (setting.tokens + setting.predicted)
    if not plan.backward:  # logits, their copy and probabilities; or a matrix with its noise
        return max(head + w * V * setting.predicted, 2 * w * max(*shape.outside, *_sizes(shape)))
    layer = max(_anew(plan, w, *size) for size in shape.linears)
    return max(head, gradients + 2 * WIDE * max(trained), max(kept, gradients) + again + layer)


def _sizes(shape: Shape) -> list[int]:
    return [n_out * n_in for n_out, n_in in shape.linears]


def _linear_bytes(shape: Shape, plan: Plan, w: int) -> int:
    """Of all blocks' linear layers as they are held."""
    if plan.packed is None:
        return shape.layers * w * sum(_sizes(shape))
    return shape.layers * sum(plan.packed.n_bytes(*size) for size in shape.linears)


def _beside(plan: Plan, n_out: int, n_in: int) -> list[int]:
    """Numbers of every tensor that is trained beside a matrix (out, in)."""
    found = [] if plan.fake is None else [plan.fake.groups.count(n_out, n_in)] * plan.fake.learned
    if plan.branch is not None:
        seen = n_in if plan.branch.pooled is None else math.ceil(n_in / plan.branch.pooled)
        found += [plan.branch.rank * seen, n_out * plan.branch.rank]
        found += [2] if plan.branch.elastic else []
    return found


def _constants(shape: Shape, plan: Plan, w: int) -> int:
    """Bytes of a branch that are not trained: which group or run a channel is of, and what share of the run's mean."""
    branch, total = plan.branch, 0
    for n_out, n_in in shape.linears if branch is not None else ():
        assert branch is not None
        total += INDEX * n_in if branch.pooled else 0
        total += INDEX * (n_in + n_out) + w * n_in if branch.elastic else 0
    return shape.layers * total


def _trained(shape: Shape, plan: Plan) -> list[int]:
    """Numbers of every tensor that is trained."""
    beside = [n for size in shape.linears for n in _beside(plan, *size)] * shape.layers
    whole = [] if plan.branch is not None else [*shape.outside, *_sizes(shape) * shape.layers]
    return whole + beside


def _activations(shape: Shape, plan: Plan, setting: Setting) -> tuple[int, int]:
    """Bytes kept for the backward pass, and those of a block that is computed anew before its own."""
    if not plan.backward:
        return 0, 0
    n, w, h, frozen = setting.tokens, setting.width, shape.hidden, plan.branch is not None
    block = _block(shape, plan, setting)
    norm = n * (WIDE * (h + 1) + (0 if frozen else 2 * w * h))
    tables = 2 * w * setting.length * shape.head
    head = norm + w * (setting.predicted * shape.vocabulary + 1) + INDEX * setting.predicted
    inputs = 0 if frozen else INDEX * n
    if setting.checkpointing:
        return shape.layers * w * n * h + tables + head + inputs, block
    first = _without_gradient(plan, setting, shape) if frozen else 0
    return shape.layers * block - first + tables + head + inputs, 0


def _block(shape: Shape, plan: Plan, setting: Setting) -> int:
    """Bytes that a block keeps."""
    n, w, h, m, branch = setting.tokens, setting.width, shape.hidden, shape.intermediate, plan.branch
    attention = n * (w * (2 * shape.queries + 2 * shape.kv) + WIDE * shape.heads)
    norms = 2 * n * WIDE * (h + 1)
    if branch is None:
        norms += 2 * 2 * w * n * h
        return norms + attention + 4 * w * n * m + sum(_rounding(plan.fake, w, *size) for size in shape.linears)
    pooled, beside = branch.pooled is not None, not branch.inside
    norms += 0 if pooled else 2 * w * n * h
    mlp = (3 if pooled else 4) * w * n * m
    return norms + attention + mlp + (sum(_branch(branch, w, n, *size) for size in shape.linears) if beside else 0)


def _rounding(fake: Fake | None, w: int, n_out: int, n_in: int) -> int:
    if fake is None:
        return 0
    tensors, flags = fake.aside
    return n_out * n_in * (fake.tensors * w + 1) + fake.groups.count(n_out, n_in) * (tensors * w + flags)


def _anew(plan: Plan, w: int, n_out: int, n_in: int) -> int:
    """A layer that is made for its product: decoded, or adapted and rounded."""
    if plan.packed is not None:
        return w * n_out * n_in
    inside = plan.branch is not None and plan.branch.inside
    return w * n_out * n_in + _rounding(plan.fake, w, n_out, n_in) if inside else 0


def _branch(branch: Branch, w: int, n: int, n_out: int, n_in: int) -> int:
    """A x, s B, what the branch sees if that is its own, and an elastic one's A and what is added to it."""
    own = n * math.ceil(n_in / branch.pooled) if branch.pooled else 0
    return w * (n * branch.rank + n_out * branch.rank + own + (n_in * (branch.rank + 1) if branch.elastic else 0))


def _without_gradient(plan: Plan, setting: Setting, shape: Shape) -> int:
    """What a first block does not keep, whose input has no gradient: its norm's input and root, an elastic A."""
    assert plan.branch is not None
    elastic = 3 * plan.branch.rank * shape.hidden if plan.branch.elastic else 0
    return setting.tokens * WIDE * (shape.hidden + 1) + setting.width * elastic
