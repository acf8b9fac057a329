"""The reference model outside the harness: the divergence of any recipe token by token, for paired comparisons."""

from types import SimpleNamespace

import numpy as np
import torch

from suite.blockwise import quantize_block
from suite.calibration import Calibration, last_hidden
from suite.evaluation import Ended, compare
from suite.models.checkpoint import load_model
from suite.tokens import load_tokens


def open_reference():
    """The model, its calibration rows, evaluation clusters, and a way to the divergence of a recipe."""
    checkpoint = load_model("reference")
    calibration = load_tokens(None, "calibration", checkpoint, 256).draw(1 << 15, 0)
    evaluation = load_tokens(None, "evaluation", checkpoint, 256).spread(1 << 16)
    kept, ids = Calibration.of(checkpoint, calibration, 1), evaluation.tensor()
    base = Ended(checkpoint, torch.from_numpy(np.array(last_hidden(checkpoint, evaluation, 1))))

    @torch.no_grad()
    def divergence(recipe):
        """KL by token (rows, length - 1), stored bits per weight, bits with the codes coded, and fallbacks."""
        hidden, records, fallbacks = checkpoint.embed(ids), [], []
        calibrating = checkpoint.embed(calibration.tensor()) if recipe.inputs == "quantized" else None
        for i in range(checkpoint.n_blocks):
            block = checkpoint.block(i)
            done = quantize_block(checkpoint, i, block, recipe, kept.statistics(i), 0, calibrating)
            fallbacks += [what for found in done.layers.values() for what in found.fallbacks]
            records += done.records
            calibrating = None if calibrating is None else checkpoint.run(i, block, calibrating)
            hidden = checkpoint.run(i, block, hidden)
        kl = compare(Ended(checkpoint, hidden), base, ids).paired.kl
        weights = sum(x.n_out * x.n_in for x in records)
        stored, coded = sum(x.n_bits for x in records) / weights, sum(x.coded_bits for x in records) / weights
        return kl, stored, coded, fallbacks

    return SimpleNamespace(checkpoint=checkpoint, calibration=calibration, clusters=evaluation.clusters,
                           divergence=divergence)  # fmt: skip
