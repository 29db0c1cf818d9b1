"""A vocabulary that takes in discovered words, and only those that were paid for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pfl_lm.text.discovered import DiscoveredWords, cost_of_words
from pfl_lm.text.synthetic.population import synthetic_words
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.text.tokenizer_build import build_tokenizer
from pfl_lm.text.tokenizer_grow import new_shares, old_ids
from pfl_lm.text.tokenizer_recipe import (
    CONFESSION,
    Subwords,
    TokenizerRecipe,
    VocabularySource,
)

WORDS = synthetic_words(11_000)
ASKED = {"population": "chat", "unit": "user", "epsilon": 1.0, "delta": 1e-6}
FOUND = DiscoveredWords(
    {"moarvm": 300.0, "rakudo": 90.0, WORDS[3]: 500.0, "two words": 80.0, "ircd": -1.0},
    1000, 4, "(ε, δ)", "ab" * 32, ASKED,
)  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A vocabulary without subwords, and one with."""
    folder = tmp_path_factory.mktemp("bases")
    rows = [f"{word}\t{100_000 // rank}" for rank, word in enumerate(WORDS, 1)]
    (folder / "list.tsv").write_text("\n".join(["word\tcount", *rows]))
    source = VocabularySource("word_list", "invented", "CC0-1.0", folder / "list.tsv")
    for spells in (False, True):
        subwords = Subwords(600) if spells else None
        recipe = TokenizerRecipe("en_US", 10_000, source, subwords=subwords)
        build_tokenizer(recipe, folder / str(spells))
    return {spells: folder / str(spells) for spells in (False, True)}


def recipe_of(base: Path, size: int = 20_000, **stated: object) -> TokenizerRecipe:
    source = VocabularySource("discovered", "asked", "own", base.parent, base=base)
    return TokenizerRecipe("en_US", size, source, **stated)  # type: ignore[arg-type]


@pytest.mark.parametrize("spells", [False, True])
def test_new_words_get_ids_and_old_pieces_keep_their_text(bases, tmp_path, spells: bool) -> None:
    base = Tokenizer.open(bases[spells])
    grown = build_tokenizer(recipe_of(bases[spells]), tmp_path / "t", discovered=FOUND)
    new = set(zip(grown.words, grown.kinds, strict=True)) - set(
        zip(base.words, base.kinds, strict=True)
    )
    assert new == {("moarvm", "word"), ("rakudo", "word"), ("ircd", "word")}
    text = f"{WORDS[5]} moarvm zzqx {WORDS[9]} rakudo"
    assert [w for w in grown.words if w in text.split()]
    assert "moarvm" in [grown.words[i] for i in grown.encode(text)]
    ids = old_ids(base, grown)
    known = f"{WORDS[5]} zzqx {WORDS[9]}"
    assert [int(ids[i]) for i in grown.encode(known)] == base.encode(known)
    assert grown.unigram.sum() == pytest.approx(1)
    assert Tokenizer.open(tmp_path / "t").digest == grown.digest


def test_shares_follow_the_sums_and_leave_half_to_the_unknown(bases, tmp_path) -> None:
    base = Tokenizer.open(bases[False])
    grown = build_tokenizer(recipe_of(bases[False]), tmp_path / "t", discovered=FOUND)
    ids = old_ids(base, grown)
    shares = new_shares(base, grown, ids)
    by_word = {grown.words[i]: shares[i] for i in np.flatnonzero(ids < 0)}
    assert by_word["moarvm"] > by_word["rakudo"] > by_word["ircd"] > 0
    assert 0 < shares.sum() <= 0.5
    assert not shares[ids >= 0].any()


def test_only_the_strongest_find_room(bases, tmp_path) -> None:
    recipe = recipe_of(bases[False], size=10_001)
    grown = build_tokenizer(recipe, tmp_path / "t", discovered=FOUND)
    assert grown.vocabulary_size == 10_001
    assert grown.words[-1] == "moarvm"


def test_what_grows_from_private_text_is_of_private_text(tmp_path: Path) -> None:
    """A question that was paid for launders no words that nobody paid for."""
    path = tmp_path / "private.txt"
    path.write_text("\n".join(WORDS))
    source = VocabularySource("private_text", "us", "own", path, breaks_guarantee=CONFESSION)
    build_tokenizer(TokenizerRecipe("en_US", 10_000, source), tmp_path / "base")
    grown = build_tokenizer(recipe_of(tmp_path / "base"), tmp_path / "t", discovered=FOUND)
    assert grown.breaks_guarantee
    assert grown.manifest["source"]["kind"] == "private_text"


def test_all_questions_that_found_words_are_named(bases, tmp_path: Path) -> None:
    once = build_tokenizer(recipe_of(bases[False]), tmp_path / "once", discovered=FOUND)
    assert not once.breaks_guarantee
    said = cost_of_words(once.manifest["source"])
    assert said == (
        " Words of its vocabulary come from a question to chat: ε = 1.000, δ = 1e-06 per user who "
        "was asked, on top of this."
    )
    more = replace(FOUND, sums={"novel": 300.0}, asked={**ASKED, "epsilon": 0.5})
    twice = build_tokenizer(recipe_of(tmp_path / "once"), tmp_path / "twice", discovered=more)
    both = cost_of_words(twice.manifest["source"])
    assert both.startswith(said)
    assert "ε = 0.500" in both


class TestRefusals:
    def test_words_without_their_ledger(self, bases, tmp_path) -> None:
        with pytest.raises(ValueError, match="ledger"):
            build_tokenizer(recipe_of(bases[False]), tmp_path / "t")

    @pytest.mark.parametrize(
        ("stated", "field"),
        [
            ({"casing": "natural"}, "casing"),
            ({"punctuation": "keep"}, "punctuation"),
            ({"subwords": Subwords(600)}, "subwords"),
            ({"size": 10_000}, "size"),
        ],
    )
    def test_a_recipe_that_does_not_fit_its_base(self, bases, tmp_path, stated, field) -> None:
        with pytest.raises(ValueError, match=field):
            build_tokenizer(recipe_of(bases[False], **stated), tmp_path / "t", discovered=FOUND)

    def test_a_discovery_without_a_base_and_a_base_without_a_discovery(self, tmp_path) -> None:
        for kind, base in (("discovered", None), ("word_list", tmp_path)):
            with pytest.raises(ValueError, match="base"):
                VocabularySource(kind, "asked", "own", tmp_path, base=base)  # type: ignore[arg-type]

    def test_a_vocabulary_that_is_no_growth_of_the_other(self, bases) -> None:
        first, second = (Tokenizer.open(bases[spells]) for spells in (False, True))
        with pytest.raises(ValueError, match="lacks"):
            old_ids(first, second)
