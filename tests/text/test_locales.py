"""The vocabularies of other languages that ship with the package."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from pfl_lm.recipes import load
from pfl_lm.text.normalisation import PUNCTUATION, marks_of
from pfl_lm.text.pieces import is_emoji
from pfl_lm.text.tokenizer_build import EMOJI_SHARE, build_tokenizer
from pfl_lm.text.tokenizer_recipe import TokenizerRecipe

FOLDER = Path(__file__).resolve().parents[2] / "tokenizers" / "locales"
LOCALES = sorted(path.stem for path in FOLDER.glob("*.toml"))
FEW = ("es_ES", "hi_IN", "vi_VN")  # a list with emoji, one with marks of its own, a short one
SCRIPTS = {
    "ar": "ARABIC", "fa": "ARABIC", "ur": "ARABIC", "he": "HEBREW", "el": "GREEK",
    "bg": "CYRILLIC", "mk": "CYRILLIC", "ru": "CYRILLIC", "uk": "CYRILLIC",
    "hi": "DEVANAGARI", "bn": "BENGALI", "ta": "TAMIL",
}  # fmt: skip
SENTENCES = {
    "es": "¿ qué tal ? ¡ muy bien ! «sí» 😂",
    "hi": "यह कैसा है ।",
    "ar": "كيف الحال ؟",
    "el": "τι κάνεις ; καλά ·",
    "uk": "як справи — добре « так »",
    "tr": "ışık ve İstanbul – evet",
    "fr": "l'école « c'est » — oui",
    "de": "straße – ja",
}


def recipe(locale: str) -> TokenizerRecipe:
    return load(TokenizerRecipe, FOLDER / f"{locale}.toml")


def test_there_are_at_least_thirty_locales() -> None:
    assert len(LOCALES) >= 30
    for locale in LOCALES:
        stated = recipe(locale)
        assert stated.locale == locale
        assert stated.source.kind == "wordfreq"
        assert stated.source.licence == "CC-BY-SA-4.0"
        assert stated.source.provenance.startswith("wordfreq 3")


@pytest.mark.parametrize(
    "locale",
    [
        pytest.param(
            locale,
            marks=pytest.mark.skipif(
                locale not in FEW and "PFL_LM_TEST_MINUTES" not in os.environ,
                reason="takes seconds; PFL_LM_TEST_MINUTES=1 builds every locale",
            ),
        )
        for locale in LOCALES
    ],
)
def test_a_vocabulary_is_in_its_own_script_and_knows_its_marks(locale: str, tmp_path) -> None:
    stated = recipe(locale)
    tokenizer = build_tokenizer(stated, tmp_path / "built")
    language = locale.split("_")[0]
    assert tokenizer.vocabulary_size == stated.size
    script = SCRIPTS.get(language, "LATIN")
    own = total = 0.0
    for word, kind, share in zip(tokenizer.words, tokenizer.kinds, tokenizer.unigram, strict=True):
        if kind == "word":
            letters = [c for c in word if c.isalpha()]
            own += share * sum(unicodedata.name(c, "").startswith(script) for c in letters)
            total += share * len(letters)
    assert own / total > 0.95
    for mark in marks_of(language):
        assert tokenizer.unk_id not in tokenizer.encode(mark), mark
    if language in SENTENCES:
        ids = tokenizer.encode(SENTENCES[language])
        assert tokenizer.unk_id not in ids, [tokenizer.words[i] for i in ids]


def test_emoji_of_a_list_have_the_share_that_messages_give_them(tmp_path) -> None:
    tokenizer = build_tokenizer(recipe("es_ES"), tmp_path / "built")
    emoji = [i for i, word in enumerate(tokenizer.words) if is_emoji(word)]
    assert len(emoji) > 100
    share = float(tokenizer.unigram[emoji].sum())
    assert EMOJI_SHARE / 2 < share < EMOJI_SHARE * 2


@pytest.mark.parametrize("piece", ["😂", "👍🏽", "🇪🇸", "♥", "☀️", "1️⃣", "#️⃣", "7⃣"])
def test_what_an_emoji_is(piece: str) -> None:
    assert is_emoji(piece)


@pytest.mark.parametrize("piece", ["©", "°", "─", "🏽", "🇪", "a", "—"])
def test_what_no_emoji_is(piece: str) -> None:
    assert not is_emoji(piece)


def test_english_keeps_to_the_marks_of_ascii() -> None:
    assert tuple(marks_of("en")) == tuple(PUNCTUATION)
    assert marks_of("hi")[4] == "।"
