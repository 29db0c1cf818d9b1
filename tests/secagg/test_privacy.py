"""What the server sees is uniform, minus what the sum implies."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from pfl_lm.secagg import masks
from pfl_lm.secagg.keys import pair_mask_seed, self_mask_seed
from pfl_lm.secagg.masks import add_masks
from pfl_lm.secagg.messages import MaskedInput
from pfl_lm.secagg.ring import Ring

DIM = 40_000
SMALLEST_P = 1e-6  # some forty tests: a sound implementation fails one run in 25,000


def p_uniform(words: np.ndarray, bits: int) -> float:
    """Chi-square of the top and of the bottom byte of ring elements; the smaller p-value."""
    low, high = words & 0xFF, words >> words.dtype.type(bits - 8)
    return min(
        float(stats.chisquare(np.bincount(part.astype(np.int64), minlength=256)).pvalue)
        for part in (low, high)
    )


def vector_in(message, config, sender):
    packed = MaskedInput.decode(message, config, sender).packed
    return config.ring.unpack(packed, config.dim)


@pytest.fixture(scope="module", params=[16, 20])
def played(request, make_round):
    """A finished round of four survivors and one that dropped, with constant vectors."""
    lab = make_round(cohort=5, dim=DIM, bits=request.param)
    lab.vectors[:] = np.arange(1, 6)[:, None]
    lab.advertise().share()
    lab.mask(silent={4})
    secrets = {index: state._me for index, state in lab.devices.items()}
    sent = {
        index: vector_in(state.message, lab.config, index) for index, state in lab.devices.items()
    }
    lab.devices.pop(4)
    return lab.config, secrets, sent, lab.unmask()


def without_own_mask(config, secrets, sent, index):
    words = sent[index].copy()
    add_masks(config.ring, words, [], [self_mask_seed(secrets[index].seed, config.context, index)])
    return words


def without_masks_towards(config, secrets, words, index, other):
    pair = secrets[other].mask_pair
    seed = pair_mask_seed(pair, secrets[index].mask_pair.public, config.context, other, index)
    add_masks(config.ring, words, *(([], [seed]) if index < other else ([seed], [])))
    return words


def test_every_masked_input_is_uniform(played):
    config, _, sent, _ = played
    for words in sent.values():
        assert p_uniform(words, config.bits) > SMALLEST_P


def test_what_the_answers_unmask_is_uniform_on_every_proper_subset(played):
    """The server removes the survivors' own masks and all masks towards the dropped device."""
    config, secrets, sent, opened = played
    bare = {}
    for index in range(4):
        words = without_own_mask(config, secrets, sent, index)
        bare[index] = without_masks_towards(config, secrets, words, index, 4)
    for size in (1, 2, 3):
        for subset in combinations(range(4), size):
            words = config.ring.reduce(sum((bare[i] for i in subset), np.zeros_like(bare[0])))
            assert p_uniform(words, config.bits) > SMALLEST_P, subset
    everything = config.ring.reduce(sum(bare.values(), np.zeros_like(bare[0])))
    assert set(everything.tolist()) == {1 + 2 + 3 + 4}  # the sum, and the chi-square has power:
    assert p_uniform(everything, config.bits) < SMALLEST_P
    assert set(opened.vector.tolist()) == {10}


def test_the_late_vector_of_a_dropped_device_stays_masked(played):
    """All masks it shares with others are known by now; its own mask is not, and never will be."""
    config, secrets, sent, _ = played
    words = sent[4].copy()
    for other in range(4):
        words = without_masks_towards(config, secrets, words, 4, other)
    words = config.ring.reduce(words)
    assert p_uniform(words, config.bits) > SMALLEST_P
    add_masks(config.ring, words, [], [self_mask_seed(secrets[4].seed, config.context, 4)])
    assert set(config.ring.reduce(words).tolist()) == {5}


def test_pairs_of_masked_inputs_are_independent(played):
    config, _, sent, _ = played
    for a, b in combinations(range(5), 2):
        high = (sent[a] >> (config.bits - 4)) * 16 + (sent[b] >> (config.bits - 4))
        counts = np.bincount(high.astype(np.int64), minlength=256)
        assert stats.chisquare(counts).pvalue > SMALLEST_P


def test_masks_differ_between_rounds_devices_and_attempts(make_round):
    seen = set()
    for number in (7, 7, 8):
        lab = make_round(round=number).advertise().share()
        lab.vectors[:] = 0
        lab.mask()
        seen |= {state.message[52:] for state in lab.devices.values()}
    assert len(seen) == 15


@pytest.mark.parametrize("bit", [0, 31, 32, 63, 127, 128, 200, 255])
def test_all_256_bits_of_a_seed_matter(bit):
    """Flower 1.41 folds its 256-bit seeds to 32 bits."""
    seed = bytes(range(32))
    other = (int.from_bytes(seed, "little") ^ (1 << bit)).to_bytes(32, "little")
    both = np.zeros((2, 1000), dtype=np.uint32)
    add_masks(Ring(32), both[0], [seed], [])
    add_masks(Ring(32), both[1], [other], [])
    assert np.count_nonzero(both[0] == both[1]) < 5


@pytest.mark.parametrize("bits", [8, 16, 17, 18, 19, 24, 25, 27, 28, 31, 32, 47, 63, 64])
@pytest.mark.parametrize("compiled", [True, False])
def test_a_mask_is_the_key_stream_of_its_seed(bits, compiled, without_compiled, monkeypatch):
    """The specification, written out, over several blocks; 13 masks are eight, four and one."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    if not compiled:
        without_compiled()
    monkeypatch.setattr(masks, "_BLOCK_BYTES", 1 << 12)
    ring, dim = Ring(bits), 9_003
    seeds = [bytes(range(at, at + 32)) for at in range(24)]
    vector = np.arange(dim) - dim // 2
    expected = vector.astype(object)
    for place, seed in enumerate(seeds):
        stream = Cipher(algorithms.AES128(seed[:16]), modes.CTR(seed[16:])).encryptor()
        read = stream.update(bytes((dim * bits + 7) // 8))
        digits = np.unpackbits(np.frombuffer(read, np.uint8), bitorder="little")[: dim * bits]
        weights = 2 ** np.arange(bits, dtype=np.uint64)
        mask = digits.reshape(dim, bits).astype(np.uint64) @ weights
        expected = expected + (mask if place < 13 else -mask.astype(object))
    total = vector.astype(ring.word)
    add_masks(ring, total, seeds[:13], seeds[13:])
    assert ring.reduce(total).tolist() == (expected % 2**bits).tolist()
    assert masks.mask(ring, vector, seeds[:13], seeds[13:]) == ring.pack(total)
