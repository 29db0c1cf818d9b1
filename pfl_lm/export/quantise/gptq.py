"""Four bits that lose little: rounding that makes up for its own errors, on PUBLIC text.

Rounding each weight to the nearest of 15 values moves every word's score by an error of its own.
Here columns are rounded one after the other, and what a column got wrong is taken up by those
that are not rounded yet, as far as they can on the hidden vectors that the model really makes.

Legend: V words, P width of the table, G groups of a row, N hidden vectors.

Source: Frantar et al. 2022, "GPTQ: accurate post-training quantization for generative pre-trained
transformers" (arXiv:2210.17323), section 3, with the grid fixed as each group is reached.
"""

from __future__ import annotations

import numpy as np
import torch

from pfl_lm.export.forward import padded
from pfl_lm.export.quantise.grids import INT4, QuantisationGrid, codes_of, scales_of
from pfl_lm.export.quantise.word_tables import Layers
from pfl_lm.models.file import Model
from pfl_lm.models.models import hidden_of, merge

DAMPING = 0.01  # of the mean of the diagonal, as in the source
READ = 0.5  # weight of a tied table's rows as they are read, likewise
_TRIES = 3  # to let a group's peak meet the grid's end


def fitted(model: Model, windows: np.ndarray, grid: QuantisationGrid = INT4) -> Model:
    """Return the model with its word tables on a 4-bit grid, rounded with compensation.

    Every format's quantiser stores such tables as they are. A tied table is fitted for both its
    parts: its products with hidden vectors, and its rows as they are read.

    Args:
        windows: int64[n, T] of PUBLIC text, some thousands of windows: what the errors are
            weighed by. Never text of users: what is released would depend on it outside the
            guarantee.
    """
    spec, parameters = merge(model.spec, model.parameters)
    ready = padded(Model(spec, parameters, model.origin))
    vectors = hidden_of(ready.spec, ready.parameters, windows).flatten(0, 1)  # (N, P)
    second_moment = (vectors.mT @ vectors / len(vectors)).double().numpy()
    each = np.eye(ready.spec.embedding_dim)  # a word is read alone: every column counts alike
    tables = {ready.spec.output_table: second_moment}
    if ready.spec.tied:
        second_moment += READ * np.diag(second_moment).mean() * each
    else:
        tables["embedding"] = each
    new = {
        name: torch.from_numpy(compensated(ready.parameters[name].numpy(), moment, grid))
        for name, moment in tables.items()
    }
    return Model(ready.spec, ready.parameters | new, model.origin)


def fitted_layers(model: Model, windows: np.ndarray) -> Layers:
    """Return 4-bit layers whose first one is fitted; the second holds what that leaves.

    The output table of an untied model is rounded to the nearest.
    """
    first = fitted(model, windows).parameters["embedding"].numpy()
    return Layers(INT4, first=first)


def compensated(table: np.ndarray, second_moment: np.ndarray, grid: QuantisationGrid) -> np.ndarray:
    """Round a table (V, P) to the grid so that table · hidden changes least, float32 (V, P).

    Args:
        second_moment: E[h hᵀ] of the hidden vectors, (P, P).
    """
    width = table.shape[1]
    damped = second_moment + np.eye(width) * DAMPING * np.diag(second_moment).mean()
    spread = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)  # upper (P, P)
    left, done = table.astype(np.float32).copy(), np.empty(table.shape, np.float32)
    for first in range(0, width, grid.group):
        group = slice(first, first + grid.group)
        values, errors = _rounded_group(left[:, group], spread[group, group], grid)
        done[:, group] = values
        left[:, group.stop :] -= errors @ spread[group, group.stop :]
    return done


def _rounded_group(
    start: np.ndarray, spread: np.ndarray, grid: QuantisationGrid
) -> tuple[np.ndarray, np.ndarray]:
    """Round one group of columns (V, group); return values and each column's scaled error.

    The grid follows from the peak before rounding; compensation may move that peak. Rows whose
    largest code then falls short of the grid's end are rounded again on the finer grid that they
    do fill, so that a quantiser which looks at the peak finds the same grid.
    """
    scales = scales_of(np.abs(start).max(1), grid)
    codes, errors = _compensate(start, scales, spread, grid)
    for _ in range(_TRIES):
        peaks = np.abs(codes).max(1)
        short = np.flatnonzero((peaks < grid.most) & (peaks > 0))
        if not len(short):
            break
        scales[short] = scales_of(peaks[short] * scales[short], grid)
        codes[short], errors[short] = _compensate(start[short], scales[short], spread, grid)
    return codes * scales[:, None], errors


def _compensate(
    start: np.ndarray, scales: np.ndarray, spread: np.ndarray, grid: QuantisationGrid
) -> tuple[np.ndarray, np.ndarray]:
    left, codes = start.copy(), np.empty(start.shape, np.int8)
    errors = np.empty(start.shape, np.float32)
    for column in range(start.shape[1]):
        codes[:, column] = codes_of(left[:, column], scales, grid)
        errors[:, column] = (left[:, column] - codes[:, column] * scales) / spread[column, column]
        left[:, column:] -= errors[:, column : column + 1] * spread[column, column:]
    return codes, errors
