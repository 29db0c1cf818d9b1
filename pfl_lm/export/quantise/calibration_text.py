"""Text that the model itself samples: to calibrate with, where nobody's text may be read.

What is sampled from a model is post-processing of it: no guarantee is touched.
"""

from __future__ import annotations

import numpy as np
import torch

from pfl_lm.models.file import Model
from pfl_lm.models.models import hidden_of, longest_text, scores
from pfl_lm.text.tokenizer import Tokenizer

_AT_ONCE = 128  # texts sampled side by side: (128, V) scores are made at each word


@torch.no_grad()
def calibration_windows(model: Model, texts: int = 128, length: int = 12) -> np.ndarray:
    """Sample texts from the model, int64[texts, length], each from the sign that begins one.

    They are shorter where the model reads fewer ids.
    The same model gives the same texts.
    """
    draw = torch.Generator().manual_seed(0)
    length = min(length, longest_text(model.spec) or length)
    pieces = [min(_AT_ONCE, texts - first) for first in range(0, texts, _AT_ONCE)]
    return np.concatenate([_sampled(model, count, length, draw) for count in pieces])


def _sampled(model: Model, count: int, length: int, draw: torch.Generator) -> np.ndarray:
    words = np.full((count, 1), Tokenizer.bos_id)
    for _ in range(length - 1):
        last = hidden_of(model.spec, model.parameters, words)[:, -1]  # (count, P)
        chances = scores(model.spec, model.parameters, last).softmax(-1)
        words = np.hstack([words, torch.multinomial(chances, 1, generator=draw).numpy()])
    return words
