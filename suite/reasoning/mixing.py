"""Problems among the rows that a model is trained on, and whether it has learned to solve them."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from suite.reasoning.letters import Letters
from suite.reasoning.measure import solved
from suite.reasoning.problems import LONGEST, draw_distinct, training_row
from suite.runtime.model import Runtime

UNLEARNED = -100  # the label of a token that no loss is taken of, as `transformers` has it
_WATCHED = 40  # held-out problems of each length that training is watched on: 240, or 2 to 3% of standard error


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """`rows` of problems in every batch, drawn by `seed`."""

    letters: Letters
    rows: int
    seed: int

    def mixed(self, step: int, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (n + rows, length) and labels of batch `step`, `text` (n, length) first.

        What a step's problems are follows from seed and step alone. All text is learned, and of problems what
        `training_row` says.
        """
        rng = np.random.default_rng((self.seed, step, 1))  # the text's are (seed, epoch)
        drawn = [training_row(rng, text.shape[1]) for _ in range(self.rows)]
        rows = torch.from_numpy(self.letters.rows([row for row, _ in drawn]))
        learned = torch.from_numpy(np.stack([where for _, where in drawn]))
        labels = rows.masked_fill(~learned, UNLEARNED)
        return torch.cat([text, rows]), torch.cat([text, labels])

    def right(self, model: PreTrainedModel) -> float:
        """The share of held-out problems, as many of each length, that the model writes right throughout."""
        runtime = Runtime(model, lambda: DynamicCache(config=model.config))
        draws = [draw_distinct(np.random.default_rng((self.seed, k, 2)), k, _WATCHED) for k in range(1, LONGEST + 1)]
        return float(np.mean(np.concatenate([solved(runtime, self.letters, problems) for problems in draws])))
