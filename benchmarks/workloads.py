"""The three fixed workloads of the speed comparison: one input file that every simulator reads.

W1: LSTM 670, embedding and projection 96, untied output, V = 10,004 (as Reddi et al. 2020).
W2: the same with V = 50,004. W3: transformer, 4 layers, width 128, 4 heads, feed-forward 512,
tied, V = 50,004. Per device 64 windows × 20 predictions, batch 16, one epoch of SGD at 0.3,
whole-update clip 1, Gaussian noise on the sum.

Numpy alone, so that each simulator's own environment can read it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

WINDOWS, LENGTH, BATCH, RATE, CLIP, NOISE = 64, 20, 16, 0.3, 1.0, 1e-4
VOCABULARY = {"W1": 10_004, "W2": 50_004, "W3": 50_004}
DEVICES = 256
SPECIALS = 4  # pad, bos, eos, unknown


def open_work(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Read a workload, made and kept in ``folder`` at the first call.

    Returns:
        ``tokens`` int32[devices, windows, length + 1] and the initial parameters by their names
        in ``pfl_lm`` ("embedding", "layer0.recurrent", …), float32.
    """
    file = Path(folder) / f"{name}.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(2020)
        tokens = _tokens(VOCABULARY[name], draw)
        start = _transformer if name == "W3" else _lstm
        temporary = file.with_suffix(".tmp.npz")
        arrays = {"tokens": tokens, **start(VOCABULARY[name], draw)}
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # named arrays, no options
        temporary.replace(file)
    with np.load(file) as held:
        return dict(held)


def _tokens(vocabulary: int, draw: np.random.Generator) -> np.ndarray:
    """Zipf–Mandelbrot words; a tenth from the device's topic, a third set by the word before."""
    words = vocabulary - SPECIALS
    mass = 1 / (np.arange(words) + 2.7)
    cumulative = np.cumsum(mass / mass.sum())[:-1]

    def frequent(*shape: int) -> np.ndarray:
        return np.searchsorted(cumulative, draw.random(shape))

    follower = frequent(words)
    tokens = np.ones((DEVICES, WINDOWS, LENGTH + 1), np.int32)  # every window starts with bos
    for device in tokens:
        topic = draw.integers(0, words, 200)
        kind = draw.random((WINDOWS, LENGTH))
        chosen = frequent(WINDOWS, LENGTH)
        chosen = np.where(kind < 0.1, draw.choice(topic, chosen.shape), chosen)
        for t in range(1, LENGTH):
            chosen[:, t] = np.where(kind[:, t] > 0.65, follower[chosen[:, t - 1]], chosen[:, t])
        device[:, 1:] = chosen + SPECIALS
    return tokens


def _lstm(vocabulary: int, draw: np.random.Generator) -> dict[str, np.ndarray]:
    width, cells = 96, 670
    bias = np.zeros(4 * cells, np.float32)
    bias[cells : 2 * cells] = 1.0
    return {
        "embedding": _uniform(draw, 0.05, vocabulary, width),
        "output": _glorot(draw, vocabulary, width),
        "output_bias": np.zeros(vocabulary, np.float32),
        "layer0.input": _glorot(draw, 4 * cells, width),
        "layer0.input_bias": bias,
        "layer0.recurrent": _uniform(draw, cells**-0.5, 4 * cells, cells),
        "projection": _glorot(draw, width, cells),
        "projection_bias": np.zeros(width, np.float32),
    }


def _transformer(vocabulary: int, draw: np.random.Generator) -> dict[str, np.ndarray]:
    width, inner, layers = 128, 512, 4
    found = {
        "embedding": _normal(draw, 0.02, vocabulary, width),
        "positions": _normal(draw, 0.02, LENGTH, width),
    }
    out = (2 * layers) ** -0.5
    for layer in range(layers):
        matrices = {
            "attention": _normal(draw, width**-0.5, 3 * width, width),
            "attention_out": _normal(draw, out * width**-0.5, width, width),
            "feedforward_in": _normal(draw, width**-0.5, inner, width),
            "feedforward_out": _normal(draw, out * inner**-0.5, width, inner),
        }
        for name, matrix in matrices.items():
            found[f"block{layer}.{name}"] = matrix
            found[f"block{layer}.{name}_bias"] = np.zeros(len(matrix), np.float32)
        for norm in ("attention_norm", "feedforward_norm"):
            found[f"block{layer}.{norm}_gain"] = np.ones(width, np.float32)
            found[f"block{layer}.{norm}_bias"] = np.zeros(width, np.float32)
    found["final_norm_gain"] = np.ones(width, np.float32)
    found["final_norm_bias"] = np.zeros(width, np.float32)
    return found


def _uniform(draw: np.random.Generator, bound: float, *shape: int) -> np.ndarray:
    return draw.uniform(-bound, bound, shape).astype(np.float32)


def _glorot(draw: np.random.Generator, *shape: int) -> np.ndarray:
    return _uniform(draw, (6 / sum(shape)) ** 0.5, *shape)


def _normal(draw: np.random.Generator, scale: float, *shape: int) -> np.ndarray:
    return (scale * draw.standard_normal(shape)).astype(np.float32)
