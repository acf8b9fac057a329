"""Beam search for the codes of additive codebooks, in the norm of the inputs' Gram matrix.

Egiazarian, Panferov, Kuznedelev, Frantar, Babenko, Alistarh 2024, "Extreme Compression of Large Language Models via
Additive Quantization" (AQLM), arXiv:2401.06118, section 3.2 phase 1; after Babenko, Lempitsky 2014, "Additive
Quantization for Extreme Vector Compression". Group i of row w is s sum_m C_m[b_im], and with the row's error e = w - q
and z = (e H)_i, replacing the entry c of one codebook by c' changes the loss e H e^T by

    2 s (c - c') . z + s^2 (c - c') H_ii (c - c')^T                                        (exact),

which is a product of matrices over all entries and a table of c H_ii c^T. Group after group and codebook after
codebook, both in random order as in the release, all entries are tried in each of the combinations held, and the best
`beam` of all results are held on to. Codes of groups not yet visited stay what they were, so that the combination that
was given is always among those compared: the loss never rises. No two of those held are ever the same.

The products e H are taken for some columns at a time and kept up to date within them: rows times inputs squared, per
combination held, and the rest is linear in the weights.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

_COLUMNS = 128  # whose products with H are kept up to date together; any value is correct
_TOGETHER = 1 << 22  # values of errors held at once: bounds the memory


@dataclass(frozen=True, slots=True)
class Searched:
    """Codes (out, groups, M), int32, the loss (out,) of every row in float64, and what the search took it to change by.

    `change` (out,) is the sum of what the steps have changed, 0 where the codes are those given.
    """

    codes: torch.Tensor
    loss: torch.Tensor
    change: torch.Tensor


def beam_search(
    W: torch.Tensor,
    H: torch.Tensor,
    codebooks: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    beam: int,
    generator: torch.Generator,
) -> Searched:
    """Codes (out, C, M) for `W` (out, in) under `H` (in, in), from `codes`, with `codebooks` (M, K, g), `scale` (out,).

    C = ceil(in / g): what a last group goes beyond the matrix costs nothing. The loss of a row is (w - q) H (w - q)^T.
    Computed in the type of `W`; a row whose loss, taken anew in float64, would not fall keeps its codes. Of equal
    losses the combination held before comes first, then the code held, then the lowest code.
    """
    from suite.rounding.beam_kernel import settle  # compiles on first use

    (M, _, g), (n_out, n_groups, _) = codebooks.shape, codes.shape
    order = torch.randperm(n_groups, generator=generator)
    stages = torch.stack([torch.randperm(M, generator=generator) for _ in range(n_groups)])
    columns = (order[:, None] * g + torch.arange(g)).reshape(-1)
    short = n_groups * g - W.shape[1]
    wanted, H = F.pad(W, (0, short))[:, columns], F.pad(H, (0, short, 0, short))[columns[:, None], columns]
    near, entries = H.to(W.dtype), codebooks.contiguous()
    by_value = entries.transpose(1, 2).contiguous()
    step = max(1, _COLUMNS // g)
    parts = []
    for rows in torch.arange(n_out).split(max(1, _TOGETHER // (beam * len(columns)))):
        w, s, given = wanted[rows], scale[rows].contiguous(), codes[rows][:, order].to(torch.int32)
        errors = W.new_zeros(len(rows), beam, len(columns))
        held = torch.zeros(len(rows), beam, n_groups, M, dtype=torch.int32)
        errors[:, 0], held[:, 0] = w - decoded(entries, given, s), given
        losses, live = torch.zeros(len(rows), beam, dtype=torch.float64), 1
        for first in range(0, n_groups, step):
            there = slice(first * g, min(n_groups, first + step) * g)
            products = (errors.reshape(-1, len(columns)) @ near[:, there]).reshape(len(rows), beam, -1)
            block = near[there, there].contiguous()
            norms = _norms(entries, block)
            arrays = (w, s, block, entries, by_value, norms, stages[first : first + step])
            state = (errors, products, held, losses)
            live = settle(*(x.numpy() for x in arrays), first, live, *(x.numpy() for x in state))  # type: ignore[call-arg]
        parts.append(_better(w, s, H, entries, given, held[:, 0], losses[:, 0]))
    found = Searched(*(torch.cat(x) for x in zip(*parts, strict=True)))
    back = torch.argsort(order)
    return Searched(found.codes[:, back], found.loss, found.change)


def decoded(codebooks: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Values (out, C g) of `codes` (out, C, M): the entries' sum times `scale` (out,)."""
    index = codes.to(torch.int64)
    total = codebooks[0][index[..., 0]]
    for m in range(1, len(codebooks)):
        total = total + codebooks[m][index[..., m]]
    return total.reshape(len(codes), -1) * scale[:, None]


def row_losses(E: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    """The e H e^T (out,) of every row e of `E` (out, in), in float64."""
    E = E.double()
    return ((E @ H.double()) * E).sum(1)


def _norms(entries: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    """The c H_gg c^T (groups, M, K) of all entries (M, K, g), for every block of g columns of `H`."""
    g = entries.shape[2]
    flat = entries.reshape(-1, g)
    blocks = [H[a : a + g, a : a + g] for a in range(0, len(H), g)]
    return torch.stack([((flat @ block) * flat).sum(1).reshape(entries.shape[:2]) for block in blocks])


def _better(
    w: torch.Tensor,
    s: torch.Tensor,
    H: torch.Tensor,
    entries: torch.Tensor,
    given: torch.Tensor,
    found: torch.Tensor,
    change: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row by row the codes found if their loss is less, else those given; their losses, and the change there was."""
    wide, s = entries.double(), s.double()
    before, after = (row_losses(w.double() - decoded(wide, codes, s), H) for codes in (given, found))
    better = after < before
    codes = torch.where(better[:, None, None], found, given)
    return codes, torch.where(better, after, before), torch.where(better, change, 0.0)
