"""Problems among the rows that a model is trained on, and whether it has learned to solve them."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from suite.reasoning.letters import Letters
from suite.reasoning.measure import solved
from suite.reasoning.problems import COPIED, FOUND, LONGEST, draw_distinct, training_row
from suite.runtime.model import Runtime

_WATCHED = 40  # held-out problems of each length that training is watched on: 2 to 3% of standard error for all


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """`rows` of problems in every batch of `batch_rows`, drawn by `seed`."""

    letters: Letters
    rows: int
    batch_rows: int
    seed: int

    def drawn(self, step: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The problems of batch `step` and their characters' kinds, both (rows, length): by seed and step alone."""
        rng = np.random.default_rng((self.seed, step, 1))  # the text's are (seed, epoch)
        drawn = [training_row(rng, length) for _ in range(self.rows)]
        rows = torch.from_numpy(self.letters.rows([row for row, _ in drawn]))
        return rows, torch.from_numpy(np.stack([kinds for _, kinds in drawn]))

    def loss(self, model: PreTrainedModel, step: int, text: torch.Tensor) -> torch.Tensor:
        """Of batch `step`, `text` (n, length) and problems: the mean over text and over problems, as rows have shares.

        The mean over problems is half that over values, of which there is one in six written characters and which are
        hard, and half that over all other written ones, which are soon learned.
        """
        problems, kinds = self.drawn(step, text.shape[1])
        rows = torch.cat([text, problems])
        logits = model(input_ids=rows).logits[:, :-1].float()
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
        of_text, of_problems = nats.split([len(text), len(problems)])
        found, copied = (of_problems[kinds[:, 1:] == kind].mean() for kind in (FOUND, COPIED))
        share = self.rows / self.batch_rows
        return (1 - share) * of_text.mean() + share * (found + copied) / 2

    def right(self, model: PreTrainedModel) -> float:
        """The share of held-out problems, as many of each length, that the model writes right throughout."""
        runtime = Runtime(model, lambda: DynamicCache(config=model.config))
        draws = [draw_distinct(np.random.default_rng((self.seed, k, 2)), k, _WATCHED) for k in range(1, LONGEST + 1)]
        return float(np.mean(np.concatenate([solved(runtime, self.letters, problems) for problems in draws])))
