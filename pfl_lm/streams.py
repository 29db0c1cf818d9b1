"""Named random streams: a draw depends on its labels alone, never on what was drawn before."""

from __future__ import annotations

import hashlib

import numpy as np


def key(seed: int, *labels: str | int) -> bytes:
    """Derive 32 bytes from a seed and labels; different labels give unrelated bytes.

    Every label enters with its type and its length, so ``("ab", "c")`` and ``("a", "bc")``,
    or ``1`` and ``"1"``, name different streams.

    Args:
        seed: any Python integer.
        labels: what the stream is for, from the general to the particular
            (``"rows", round``).
    """
    digest = hashlib.blake2b(digest_size=32, person=b"pfl_lm stream")
    for label in (seed, *labels):
        text = f"{'i' if isinstance(label, int) else 's'}{label}".encode()
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return digest.digest()


def stream(seed: int, *labels: str | int) -> np.random.Generator:
    """Open the random stream that ``seed`` and ``labels`` name (Philox 4x64, counter-based).

    For everything that must be reproduced: public draws, the order of a device's examples,
    synthetic users. Noise that protects people comes from the operating system instead; see
    ``pfl_lm.dp.sampler.discrete_noise``.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    derived = np.frombuffer(key(seed, *labels)[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(key=derived))


def uniforms(items: np.ndarray, seed: int, *labels: str | int) -> np.ndarray:
    """Return a number in [0, 1) for each item, float64[n]: a property of it under these labels.

    For attributes of millions of users of which a few are looked at: nothing is drawn for the
    others, and no generator is built per user.

    Args:
        items: int64[n], for example users.

    Source: the finaliser of SplitMix64, Steele, Lea and Flood 2014, "Fast splittable pseudorandom
    number generators", keyed.
    """
    first, second = np.frombuffer(key(seed, *labels)[:16], dtype="<u8")
    mixed = items.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + first
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= second  # keyed twice: related keys do not give related attributes
    mixed ^= mixed >> np.uint64(31)
    values: np.ndarray = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return values
