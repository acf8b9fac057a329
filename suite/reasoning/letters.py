"""Problems as tokens: one for every character, so that all problems of as many steps are rows of one length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from suite.reasoning.problems import ALPHABET


@dataclass(frozen=True, slots=True)
class Letters:
    """The token of each character of `ALPHABET`."""

    ids: dict[str, int]

    @classmethod
    def of(cls, tokenizer: Any, name: str) -> "Letters":
        """Those of one of `tokenizers`; `ValueError` where the model `name` has no token for a character alone."""
        ids = {}
        for character in ALPHABET:
            found = tokenizer.encode(character, add_special_tokens=False).ids
            if len(found) != 1 or tokenizer.decode(found) != character:
                raise ValueError(f"{name}: its tokenizer has no token that is {character!r} and nothing else, "
                                 f"which problems are written in")  # fmt: skip
            ids[character] = found[0]
        return cls(ids)

    def encode(self, text: str) -> np.ndarray:
        """Token ids (characters,), int64."""
        return np.array([self.ids[character] for character in text], dtype=np.int64)

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids (texts, characters), int64, of texts of one length."""
        return np.stack([self.encode(text) for text in texts])
