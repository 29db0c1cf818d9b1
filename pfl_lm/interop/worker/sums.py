"""A round's sum through TFF's runtime (inside the worker; imports TFF, not pfl_lm)."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import runtime
import tensorflow_federated as tff

# ddp_secure_aggregator starts from this clip and adapts it afterwards; a policy's clip is fixed,
# so every round starts anew, with the vectors scaled to it.
_FIRST_CLIP = 0.1
# It spends part of its noise on a count of clipped vectors: a count with this deviation per client.
_COUNT_DEVIATION = 0.05


def mean(
    vectors: np.ndarray,
    kind: str,
    clip_norm: float,
    noise_multiplier: float,
    clients: int,
    bits: int = 20,
) -> np.ndarray:
    """Sum vectors float32[K, d] with noise in TFF and divide by the public number ``clients``.

    Args:
        kind: ``gaussian``: `DifferentiallyPrivateFactory.gaussian_fixed`, noise by the server;
            ``distributed``: `ddp_secure_aggregator`, Skellam noise by every client, in integers.
        noise_multiplier: stddev of the noise on the sum of ``clients`` vectors ÷ clip_norm.
        bits: of the integers of ``distributed``.

    Returns:
        float32[d].
    """
    build = {"gaussian": _gaussian, "distributed": _distributed}[kind]
    return build(vectors, clip_norm, noise_multiplier, clients, bits)


def _gaussian(
    vectors: np.ndarray, clip_norm: float, noise_multiplier: float, clients: int, bits: int
) -> np.ndarray:
    run = _process("gaussian", vectors.shape[1], clip_norm, noise_multiplier, clients, bits)
    return np.asarray(run(vectors))


def _distributed(
    vectors: np.ndarray, clip_norm: float, noise_multiplier: float, clients: int, bits: int
) -> np.ndarray:
    """`ddp_secure_aggregator` at a fixed clip.

    Its own noise multiplier z is shared between the vectors and the count: the vectors get
    z_v with 1/z² = 1/z_v² + 1/(2 · deviation)², solved here for z.
    Source: Andrew et al. 2021 (arXiv:1905.03871), section 3.
    """
    count = 2 * _COUNT_DEVIATION * clients
    stated = (noise_multiplier**-2 + count**-2) ** -0.5 if noise_multiplier > 0 else 0.0
    run = _process("distributed", vectors.shape[1], _FIRST_CLIP, stated, clients, bits)
    scale = np.float32(_FIRST_CLIP / clip_norm)
    mean = np.asarray(run(vectors * scale)) / scale
    return mean * np.float32(len(vectors) / clients)  # TFF divides by how many came


@functools.lru_cache(maxsize=1)
def _process(
    kind: str, dim: int, clip_norm: float, noise_multiplier: float, clients: int, bits: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Build TFF's aggregation process (seconds) and return it as a function of the vectors."""
    runtime.use("native" if kind == "gaussian" else "test")
    if kind == "gaussian":
        factory = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(
            noise_multiplier, float(clients), clip_norm
        )
    else:
        factory = tff.learning.ddp_secure_aggregator(
            noise_multiplier, clients, bits=bits, zeroing=False
        )
    process = factory.create(tff.TensorType(np.float32, (dim,)))
    start = process.initialize()
    return lambda vectors: process.next(start, list(vectors)).result
