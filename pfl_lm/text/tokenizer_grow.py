"""A vocabulary that takes in discovered words: every old piece stays, ids may move."""

from __future__ import annotations

from typing import Any

import numpy as np

from pfl_lm.text.discovered import DiscoveredWords
from pfl_lm.text.tokenizer import (
    FORMS_FILE,
    SUBWORD_FILE,
    VOCABULARY_FILE,
    Tokenizer,
)
from pfl_lm.text.tokenizer_assemble import Row, assemble
from pfl_lm.text.tokenizer_recipe import TokenizerRecipe

_OWN = ("size", "normalisation", "files")  # of a manifest: what ``assemble`` writes


def grow_tokenizer(
    recipe: TokenizerRecipe, base: Tokenizer, discovered: DiscoveredWords
) -> Tokenizer:
    """Return the vocabulary of ``base`` with the strongest discovered words as words of their own.

    New words come after the old words and before the subwords. A new word's public count is its
    estimated share (from below) of the count of ``<unk>``, which loses as much.

    Args:
        recipe: of ``kind = "discovered"``; its ``size`` is the most ids that there may be.

    Raises:
        ValueError: the recipe states other rules for text than ``base`` has, leaves no room, or no
            discovered word is new to ``base``.
    """
    _check_rules(recipe, base)
    rows = _rows(base)
    shares = discovered.shares()
    lacks = (None, base.unk_id)
    words = [
        word
        for word in sorted(shares, key=lambda word: (-shares[word], word))
        if base.normalisation.pieces(word) == [word] and base.word_id(word) in lacks
    ]
    room = recipe.size - len(rows)
    if room < 1 or not words:
        why = "no discovered word is new to it" if room >= 1 else "raise it to make room"
        raise ValueError(f"size = {recipe.size:,}: the base has {len(rows):,} ids; {why}")
    unknown = sum(n for piece, kind, n in rows if kind == "subword" or piece == "<unk>")
    new: list[Row] = [
        (word, "word", max(1, round(shares[word] * unknown))) for word in words[:room]
    ]
    first_subword = next((i for i, row in enumerate(rows) if row[1] == "subword"), len(rows))
    left = max(0, rows[base.unk_id][2] - sum(count for _, _, count in new))
    rows[base.unk_id] = ("<unk>", "control", left)
    grown = rows[:first_subword] + new + rows[first_subword:]
    only_of = base.only_of[:first_subword] + [""] * len(new) + base.only_of[first_subword:]
    about = _about(recipe, base, discovered, len(new))
    subword_model, forms = (base.files.get(name) for name in (SUBWORD_FILE, FORMS_FILE))
    only_of = only_of if any(only_of) else []
    return assemble(grown, base.normalisation, about, subword_model, forms, only_of)


def old_ids(base: Tokenizer, grown: Tokenizer) -> np.ndarray:
    """Return for each id of ``grown`` the id of the same piece in ``base``, or −1: int64[V].

    Raises:
        ValueError: ``grown`` lacks a piece of ``base``, or cuts text by other rules.
    """
    known = {pair: i for i, pair in enumerate(zip(base.words, base.kinds, strict=True))}
    pairs = zip(grown.words, grown.kinds, strict=True)
    ids = np.array([known.get(pair, -1) for pair in pairs], dtype=np.int64)
    kept = int((ids >= 0).sum())
    if kept < base.vocabulary_size or grown.normalisation != base.normalisation:
        raise ValueError(
            f"the new vocabulary lacks {base.vocabulary_size - kept:,} of the old one's pieces or "
            'cuts text by other rules; build it with kind = "discovered" and this one as its base'
        )
    return ids


def new_shares(base: Tokenizer, grown: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """Return what each new word takes of the unknown words' public mass: float64[V], else 0.

    Args:
        ids: as :func:`old_ids` returns them.
    """
    subword = np.array([kind == "subword" for kind in base.kinds])
    unknown = base.unigram[base.unk_id] + base.unigram[subword].sum()
    before = base.unigram[0] / grown.unigram[0]  # both are of the same count: <pad> has none
    shares: np.ndarray = np.where(ids < 0, grown.unigram * before / unknown, 0.0)
    return shares * min(1.0, 0.5 / max(1e-12, float(shares.sum())))


def _rows(tokenizer: Tokenizer) -> list[Row]:
    lines = tokenizer.files[VOCABULARY_FILE].decode().splitlines()[1:]
    split = (line.split("\t")[:4] for line in lines)
    return [(piece, kind, int(count)) for _, piece, kind, count in split]


def _check_rules(recipe: TokenizerRecipe, base: Tokenizer) -> None:
    """Refuse a recipe that states other rules than its base has."""
    for name in ("casing", "punctuation", "numbers", "placeholders"):
        stated, has = getattr(recipe, name), getattr(base.normalisation, name)
        if stated != has:
            raise ValueError(f"{name} = {stated!r}, but the base has {has!r}; write the same")
    for name in ("subwords", "written_forms"):
        if getattr(recipe, name) is not None:
            raise ValueError(f"{name}: a grown vocabulary keeps those of its base; leave this out")


def _about(
    recipe: TokenizerRecipe, base: Tokenizer, discovered: DiscoveredWords, words: int
) -> dict[str, Any]:
    """Return what the manifest keeps: the base's own, and what the new words were paid with.

    A base that was learnt from private text makes no other of what grows from it, and questions
    that found words of the base still count.
    """
    about = {name: value for name, value in base.manifest.items() if name not in _OWN}
    return about | {
        "locale": recipe.locale,
        "provenance": recipe.source.provenance,
        "licence": recipe.source.licence,
        "source": {
            "kind": "private_text" if base.breaks_guarantee else "discovered",
            "base": base.digest,
            "words": words,
            "ledger": discovered.ledger_sha256,
            "statement": discovered.statement,
            "asked": [*base.manifest.get("source", {}).get("asked", ()), dict(discovered.asked)],
        },
    }
