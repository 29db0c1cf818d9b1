"""Whether text that is called public is that of the users: they cannot both have typed it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pfl_lm.text.population import BOS_ID, EOS_ID, SPLITS, PopulationStore

_LEAST_WORDS = 4  # of a message that people seldom write alike
_MOST = 0.5  # of the messages of that length may be the users' too
_TELLING = 20  # messages of that length: fewer of a thousand lines tell nothing
_SAMPLED = 100  # messages of a thousand lines
_CHUNK = 1 << 20  # tokens that are looked at at once
_FACTORS = np.random.default_rng(0).integers(1, 1 << 63, 2 * _LEAST_WORDS + 1, dtype=np.uint64)
Keys = npt.NDArray[np.uint64]


def refuse_users_text(public: PopulationStore, people: PopulationStore) -> None:
    """Refuse a store of public text that holds the messages of the users.

    It looks at the text as a whole, and at every thousand lines in a row: one of many files may be
    the users'. It knows a message by its first and last words and its length, and passes over
    short ones, which many people write.

    Raises:
        ValueError: most of the messages, or of those of a thousand lines, are the users' as well.
    """
    parts = [message_keys(public.tokens("train", n)) for n in range(public.users("train"))]
    parts = [keys[:: 1 + len(keys) // _SAMPLED] for keys in parts]
    known = np.unique(np.concatenate(parts))
    if not len(known):
        return
    theirs = np.zeros(len(known), dtype=bool)
    for keys in _keys_of(people):
        at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        theirs[at[known[at] == keys]] = True
    whole = np.concatenate(parts)
    for part in (whole, *(part for part in parts if len(part) >= _TELLING)):
        if (share := theirs[np.searchsorted(known, part)].mean()) > _MOST:
            of = "its messages" if part is whole else "the messages of a thousand lines in a row"
            raise ValueError(
                f"the public text is the users' own: {share:.0%} of {of} are theirs, which no ε "
                "covers there; name text that others published"
            )


def message_keys(tokens: np.ndarray) -> Keys:
    """Return a number for each whole message of a stream that has words enough, uint64[n]."""
    begins, ends = np.flatnonzero(tokens == BOS_ID), np.flatnonzero(tokens == EOS_ID)
    ends = ends[ends > begins[0]] if len(begins) else ends[:0]
    begins = begins[: len(ends)]  # the last message may be cut off
    lengths = ends - begins - 1
    long = lengths >= _LEAST_WORDS
    begins, ends = begins[long], ends[long]
    keys: Keys = lengths[long].astype(np.uint64) * _FACTORS[-1]
    for place in range(_LEAST_WORDS):
        keys += tokens[begins + 1 + place].astype(np.uint64) * _FACTORS[2 * place]
        keys += tokens[ends - 1 - place].astype(np.uint64) * _FACTORS[2 * place + 1]
    return keys


def _keys_of(people: PopulationStore) -> Iterator[Keys]:
    for split in SPLITS:
        stream = people.stream(split)
        for start in range(0, len(stream), _CHUNK):
            yield message_keys(stream[start : start + _CHUNK])
