"""Vocabularies and the text they are for: one rule cuts both, in every language that has spaces."""

from __future__ import annotations

import pickle
import unicodedata
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.export.vocabulary import BlockList
from pfl_lm.text import wordfreq_list
from pfl_lm.text.as_typed import AsTyped, keys
from pfl_lm.text.discovered import DiscoveredWords
from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.pieces import MOST_MARKS
from pfl_lm.text.tokenizer import CONTROLS, SUBWORD_FILE, VOCABULARY_FILE, Tokenizer
from pfl_lm.text.tokenizer_assemble import assemble
from pfl_lm.text.tokenizer_build import build_tokenizer
from pfl_lm.text.tokenizer_grow import grow_tokenizer
from pfl_lm.text.tokenizer_recipe import TokenizerRecipe, VocabularySource
from pfl_lm.text.word_counts import unknown_share
from pfl_lm.text.written_forms import Cutter
from tests.text.syllables import spelling_tokenizer

ROWS = [(name, "control", 1) for name in CONTROLS]
WORDFREQ = VocabularySource("wordfreq", "wordfreq 3", "CC-BY-SA-4.0")

# Everyday sentences, in the forms that people type: capitals, elisions, curly quotes.
SENTENCES = {
    "el": ["ο κόσμος είναι μεγάλος και της αρέσει", "Ο πατέρας μου είναι ΣΤΗΝ ΠΟΛΗ"],
    "fr": [
        "je n'ai pas envie d'aller à l'école parce qu'il fait froid",
        "C’est l’heure d’y aller, AUJOURD'HUI j'ai vu quelqu'un",
    ],
    "tr": ["İyi akşamlar, İstanbul'da hava güzel", "DIŞ kapı, KIZ ve IŞIK"],
    "de": ["Das Haus auf der Straße ist groß", "ich WEISS, dass es heiß ist"],
    "en": ["I don't know what you’re talking about", "It's 5 o'clock, LET'S go"],
    "it": ["L'uomo ha detto che c'è un'altra persona", "non c'è niente d'altro all'inizio"],
    "ca": ["L'home diu que d'altra banda la pel·lícula és bona"],
    "ro": ["ACELAŞI om şi ţara noastră"],
    "ar": ["كَلِمَة في الكتاب"],
    "sh": ["не знам шта да радим", "NE ZNAM šta da radim"],
    "hi": ["मुझे नहीं पता कि क्या करना है"],
    "ru": ["Я не знаю, что теперь делать"],
}


@lru_cache(maxsize=16)
def vocabulary(language: str) -> Tokenizer:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return build_tokenizer(TokenizerRecipe(language, 20_000, WORDFREQ), Path(folder) / "t")


@pytest.mark.parametrize("language", ["el", "fr", "tr", "ro", "sh", "hi"])
def test_everyday_words_are_known(language: str) -> None:
    tokenizer = vocabulary(language)
    pieces = [p for text in SENTENCES[language] for p in tokenizer.normalisation.pieces(text)]
    lacking = [p for p in pieces if tokenizer.word_id(tokenizer.normalisation.canonical(p)) is None]
    assert lacking == []
    assert unknown_share(tokenizer, SENTENCES[language]) == (len(pieces), 0)


@pytest.mark.parametrize("language", sorted(SENTENCES))
def test_every_word_of_a_list_is_found_in_text_that_holds_it(language: str) -> None:
    """A list's words, alone, after a capital letter and in capitals, give pieces of the list."""
    rules = wordfreq_list.rules(language, "drop", "placeholder", ("<number>",))
    listed = [word for word, _ in zip(_words(language), range(3000), strict=False)]
    everything = {piece for word in listed for piece in rules.pieces(word)}
    for word in listed:
        title = _upper(word[0], language) + word[1:]
        assert set(rules.pieces(title)) <= everything, word
        if language not in ("el",):  # Greek capitals drop the accents
            assert rules.pieces(_upper(word, language)) == rules.pieces(word), word


def _words(language: str) -> list[str]:
    return [word for word, _ in wordfreq_list.entries(language)]


def _upper(word: str, language: str) -> str:
    return word.replace("i", "İ").upper() if language == "tr" else word.upper()


class TestRules:
    def test_greek_words_end_in_a_final_sigma(self) -> None:
        words = _words("el")
        assert sum(word.endswith("ς") for word in words) > 1000
        assert not [word for word in words if word.isalpha() and len(word) > 1 and word[-1] == "σ"]

    def test_turkish_lower_case_whatever_the_source(self, tmp_path: Path) -> None:
        source = VocabularySource("text", "x", "y", tmp_path / "a.txt")
        for locale, word in (("tr_TR", "ışık"), ("az", "ışık"), ("en", "işik")):
            rules = TokenizerRecipe(locale, 10_000, source).normalisation()
            assert rules.pieces("IŞIK") == [word]

    def test_elided_words_are_cut_and_joined_again(self) -> None:
        french = vocabulary("fr")
        text = "je n'ai pas l'heure qu'il dit"
        assert french.decode(french.encode(text)) == text
        assert french.encode(french.normalise(text)) == french.encode(text)

    @pytest.mark.parametrize("language", ["he", "yi"])
    @pytest.mark.parametrize("word", ["צה״ל", 'צה"ל', "צה”ל"])
    def test_gershayim_stand_inside_of_words_whatever_the_source(
        self, language: str, word: str
    ) -> None:
        source = VocabularySource("word_list", "x", "CC0-1.0", path=Path("words.tsv"))
        rules = TokenizerRecipe(f"{language}_IL", 1_000, source).normalisation()
        assert rules.pieces(f"אל {word}.") == ["אל", 'צה"ל']
        assert rules.pieces("ג׳ורג׳") == ["ג'ורג"]
        message = Cutter(rules).message(word)
        assert [read for _, read, _ in message] == rules.pieces(word)

    def test_eszett_is_said_at_build(self) -> None:
        assert "ss for ß" in wordfreq_list.notes("de_DE")[0]
        rules = wordfreq_list.rules("de", "drop", "placeholder", ("<number>",))
        assert rules.pieces("STRASSE Straße STRAẞE") == ["strasse"] * 3


class TestHonestCoverage:
    def test_words_beyond_a_list_are_unknown(self) -> None:
        """The Turkish list ends at 90.7% of running text: no vocabulary of it knows more."""
        total = sum(count for _, count in wordfreq_list.entries("tr"))
        tokenizer = vocabulary("tr")
        assert tokenizer.unigram[tokenizer.unk_id] > 1 - total / wordfreq_list.TOTAL > 0.05

    def test_entries_of_several_words_are_counted_as_text_would_be(self, tmp_path: Path) -> None:
        rows = ["word\tcount", "well-known\t7", "l'heure\t3", *(f"w{i}x\t1" for i in range(10_500))]
        (tmp_path / "words.tsv").write_text("\n".join(rows))
        source = VocabularySource("word_list", "x", "y", tmp_path / "words.tsv")
        tokenizer = build_tokenizer(TokenizerRecipe("en", 10_000, source), tmp_path / "t")
        assert tokenizer.unk_id not in tokenizer.encode("well-known well l'heure")

    def test_a_word_list_with_a_byte_order_mark(self, tmp_path: Path) -> None:
        rows = ["word\tcount", *(f"w{i}x\t{20_000 - i}" for i in range(10_500))]
        (tmp_path / "words.tsv").write_bytes("\r\n".join(rows).encode("utf-8-sig"))
        source = VocabularySource("word_list", "x", "y", tmp_path / "words.tsv")
        tokenizer = build_tokenizer(TokenizerRecipe("en", 10_000, source), tmp_path / "t")
        assert tokenizer.words[5] == "w0x"


class TestSpaceless:
    @pytest.mark.parametrize("locale", ["zh_CN", "zh", "yue", "ja_JP", "th", "lo", "km", "my_MM"])
    def test_a_locale_without_spaces_is_refused(self, locale: str) -> None:
        with pytest.raises(ValueError, match="spaces do not part the words"):
            TokenizerRecipe(locale, 10_000, WORDFREQ)

    def test_a_list_that_needs_a_segmenter_is_refused(self) -> None:
        with pytest.raises(ValueError, match="with a segmenter"):
            TokenizerRecipe("ko_KR", 10_000, WORDFREQ).normalisation()

    def test_a_source_in_such_a_script_is_refused_whatever_the_locale(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("我今天很开心\n今日は天気がいい\nhello\n" * 10)
        source = VocabularySource("text", "x", "y", tmp_path / "a.txt")
        with pytest.raises(ValueError, match="no spaces between words"):
            build_tokenizer(TokenizerRecipe("en", 10_000, source), tmp_path / "t")

    def test_natural_casing_over_a_list_in_lower_case_is_refused(self) -> None:
        with pytest.raises(ValueError, match="needs a source that has capitals"):
            TokenizerRecipe("de", 10_000, WORDFREQ, casing="natural")


class TestEmoji:
    KEEP = Normalisation(punctuation="keep")

    @pytest.mark.parametrize(
        "emoji",
        ["👩‍💻", "❤️", "👍🏽", "🇩🇪", "👨‍👩‍👧‍👦", "🏳️‍🌈", "1️⃣", "#️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "😀", "☝🏿", "👩🏽‍🚀"],
    )
    def test_one_emoji_is_one_piece(self, emoji: str) -> None:
        assert self.KEEP.pieces(f"so {emoji}{emoji} it") == ["so", emoji, emoji, "it"]

    def test_a_keycap_is_an_emoji_and_no_word(self, tmp_path: Path) -> None:
        words = "\n".join(f"w{i}x 1️⃣ #️⃣ 2⃣" for i in range(1_500))
        (tmp_path / "a.txt").write_text(words)
        source = VocabularySource("text", "x", "y", tmp_path / "a.txt")
        tokenizer = build_tokenizer(TokenizerRecipe("en", 1_000, source, punctuation="keep"),
                                    tmp_path / "t")  # fmt: skip
        kinds = dict(zip(tokenizer.words, tokenizer.kinds, strict=True))
        assert [kinds[one] for one in ("1️⃣", "#️⃣", "2⃣")] == ["mark"] * 3
        emoji = {tokenizer.words[id] for id in BlockList.read(None, tokenizer).emoji_ids}
        assert emoji == {"1️⃣", "#️⃣", "2⃣"}
        assert tokenizer.unknown_words("hello 3️⃣") == ["hello"]
        assert keys("1️⃣") == keys("😀") == 2

    def test_half_an_emoji_is_no_word_of_a_vocabulary(self, tmp_path: Path) -> None:
        words = "\n".join(f"w{i}x 👍🏽 \U0001f3fd \U0001f1e9 🇩🇪" for i in range(10_500))
        (tmp_path / "a.txt").write_text(words)
        source = VocabularySource("text", "x", "y", tmp_path / "a.txt")
        recipe = TokenizerRecipe("en", 10_000, source, punctuation="keep")
        tokenizer = build_tokenizer(recipe, tmp_path / "t")
        assert {"👍🏽", "🇩🇪"} <= set(tokenizer.words)
        assert {"\U0001f3fd", "\U0001f1e9"}.isdisjoint(tokenizer.words)


class TestLength:
    """Time is bounded by length: what takes time by the square of a run is cut before."""

    @given(
        st.sampled_from(["\u0301", "\u0323", "\u0345", "\U0001d165", "\u20dd", "\u0591"]),
        st.sampled_from(["a", "", "א", "1"]),
    )
    def test_a_run_of_marks_is_cut(self, mark: str, letter: str) -> None:
        text = letter + mark * 200_000 + " the end"
        pieces = Normalisation(punctuation="keep").pieces(text)
        assert pieces[-2:] == ["the", "end"]
        assert sum(map(len, pieces)) <= MOST_MARKS + 10

    def test_different_marks_in_a_row_too(self) -> None:
        pieces = Normalisation().pieces("e" + "\u0301\u0323" * 200_000 + "x")
        assert len(pieces) == 1
        assert len(pieces[0]) <= MOST_MARKS + 2

    @given(st.text(st.characters(categories=["L", "M", "P", "Zs", "So"]), max_size=60))
    def test_ordinary_text_loses_nothing(self, text: str) -> None:
        plain = unicodedata.normalize("NFKC", text).lower()
        if not plain or max(len(run) for run in _runs(text)) <= MOST_MARKS:
            unlimited = unicodedata.normalize("NFKC", text)
            assert Normalisation().pieces(text) == Normalisation().pieces(unlimited)


def _runs(text: str) -> list[str]:
    marked = "".join("m" if unicodedata.category(c)[0] == "M" else " " for c in text)
    return [*marked.split(), ""]


def two(first: str, second: str, share: float = 0.5) -> TokenizerRecipe:
    return TokenizerRecipe(first, 5_000, WORDFREQ, punctuation="keep", second_locale=second,
                           second_share=share)  # fmt: skip


def test_a_vocabulary_of_two_languages_knows_the_words_of_both(tmp_path):
    tokenizer = build_tokenizer(two("en_US", "fr_FR", 0.25), tmp_path / "t")
    assert tokenizer.manifest["shares"] == {"en_US": 0.75, "fr_FR": 0.25}
    ids = {word: tokenizer.encode(word)[0] for word in ("the", "les", "because", "pourquoi", "«")}
    assert tokenizer.unk_id not in ids.values()
    pieces = [tokenizer.words[i] for i in tokenizer.encode("don't go à l'école")]
    assert pieces == ["don't", "go", "à", "l'", "école"]
    # "the" is 5.4% of English and "les" 1.9% of French: a list's counts are weighed by its share.
    english = build_tokenizer(replace(two("en_US", "fr_FR"), second_locale=None), tmp_path / "en")
    weighed = tokenizer.unigram[ids["the"]] / english.unigram[english.encode("the")[0]]
    assert 0.7 < weighed < 0.8
    assert not any(english.only_of)
    assert english.files[VOCABULARY_FILE].startswith(b"id\tpiece\tkind\tcount\n")
    assert {word: tokenizer.only_of[id] for word, id in ids.items()} == {
        "the": "", "les": "fr_FR", "because": "en_US", "pourquoi": "fr_FR", "«": "",
    }  # fmt: skip
    writer = tokenizer.of_languages(["en_US"])
    unknown = [tokenizer.unk_id]
    assert writer.encode("because les «") == [ids["because"], *unknown, ids["«"]]
    assert writer.digest == tokenizer.digest
    assert tokenizer.of_languages(["fr_FR", "en_US"]).encode("les") == [ids["les"]]


def test_languages_that_cannot_be_chosen(tmp_path):
    tokenizer = spelling_tokenizer()  # of no stated language
    with pytest.raises(ValueError, match=r"no 'de_DE' in this vocabulary; it has no stated"):
        tokenizer.of_languages(["de_DE"])
    both = {"shares": {"en_US": 0.5, "es_ES": 0.5}}
    old = assemble([*ROWS, ("the", "word", 1), ("los", "word", 1)], Normalisation(), both)
    with pytest.raises(ValueError, match=r"no 'de_DE' .* it has en_US, es_ES"):
        old.of_languages(["en_US", "de_DE"])
    with pytest.raises(ValueError, match=r"an earlier version built it. Build it again"):
        old.of_languages(["en_US"])


def test_a_vocabulary_of_one_language_keeps_its_bytes():
    rows = [*ROWS, ("the", "word", 7), ("los", "word", 3)]
    found = assemble(rows, Normalisation(), {"locale": "en_US"})
    lines = ["id\tpiece\tkind\tcount"]
    lines += [f"{i}\t{piece}\t{kind}\t{count}" for i, (piece, kind, count) in enumerate(rows)]
    assert found.files[VOCABULARY_FILE].decode().splitlines() == lines
    assert {*found.manifest} == {"locale", "size", "normalisation", "files"}
    assert found.of_languages(["en_US"]).encode("los") == found.encode("los") == [5]


def test_a_grown_vocabulary_knows_whose_words_its_base_has():
    pieces = [*ROWS, ("the", "word", 7), ("los", "word", 3)]
    both = {"locale": "en_US", "shares": {"en_US": 0.5, "es_ES": 0.5}}
    only_of = [""] * 4 + ["en_US", "es_ES"]
    base = assemble(pieces, Normalisation(numbers="keep", placeholders=()), both, only_of=only_of)
    source = VocabularySource("discovered", "x", "y", Path("found"), base=Path("base"))
    recipe = TokenizerRecipe("en_US", 1_000, source, numbers="keep", placeholders=())
    grown = grow_tokenizer(recipe, base, DiscoveredWords({"neu": 1.0}, 10, 1, "", "0" * 64, {}))
    assert grown.only_of == [*only_of, ""]
    assert grown.of_languages(["es_ES"]).encode("the los neu") == [1, 5, 6]


def test_pieces_do_not_spell_a_word_that_is_left_out():
    one = spelling_tokenizer()
    only_of = ["en_US" if word == "kalo" else "" for word in one.words]
    about = {"shares": {"en_US": 0.5, "es_ES": 0.5}}
    rows = [*zip(one.words, one.kinds, [1] * one.vocabulary_size, strict=True)]
    both = assemble(rows, Normalisation(), about, one.files[SUBWORD_FILE], only_of=only_of)
    writer = pickle.loads(pickle.dumps(both.of_languages(["es_ES"])))
    assert writer.encode("kalo") == [one.unk_id]
    assert writer.encode("kalokalokalo") == one.encode("kalokalokalo") != [one.unk_id]


@pytest.mark.parametrize(
    ("first", "second", "share", "message"),
    [
        ("en_US", "tr_TR", 0.5, "'I' differently"),
        ("ru_RU", "sh_BA", 0.5, "differently"),
        ("en_US", "en_GB", 0.5, "the same language"),
        ("en_US", "ja_JP", 0.5, "second_locale = 'ja_JP': spaces do not part"),
        ("en_US", "xx_XX", 0.5, "no list for 'xx'"),
        ("en_US", "es", 1.0, "second_share = 1"),
        ("en_US", "?", 0.5, "expected a tag"),
    ],
)
def test_two_languages_that_one_rule_cannot_read(first, second, share, message):
    with pytest.raises(ValueError, match=message):
        two(first, second, share).normalisation()


def test_languages_of_two_scripts_go_together():
    rules = two("en_US", "ar_EG").normalisation()
    assert rules.pieces("I said مَرْحَبًا") == ["i", "said", "مرحبا"]


@pytest.mark.parametrize("mode", ["keep", "drop"])
@pytest.mark.parametrize("mark", [*"\xad\u061c\u200e\u200f\u202a\u202c\u202e\u2060\u2066\u2069"])
def test_what_nobody_sees_is_no_word(mode, mark):
    rules = Normalisation(punctuation=mode)
    assert rules.pieces(f"{mark}مرحبا{mark} {mark} 8{mark}") == ["مرحبا", "8"]
    assert rules.pieces(f"Zei{mark}tung{mark}") == ["zeitung"]
    assert rules.pieces(f"e{mark}\u0301te\u0301") == ["été"]
    assert rules.pieces("ab\u200bcd \u200b") == ["ab", "cd"]
    assert rules.pieces("می\u200cخواهم क्\u200dष") == ["می\u200cخواهم", "क्\u200dष"]


def test_a_message_with_a_mark_of_direction_is_counted():
    rows = [(name, "control", 1) for name in CONTROLS]
    rows += [("<number>", "placeholder", 1), ("مرحبا", "word", 1)]
    tokenizer = assemble(rows, Normalisation(punctuation="keep"), {"locale": "ar_EG"})
    text = "\u202bمرحبا\u202c مرحبا\u200f"
    assert tokenizer.encode(text) == tokenizer.encode("مرحبا مرحبا")
    assert AsTyped(tokenizer).codes(text) == AsTyped(tokenizer).codes("مرحبا مرحبا")
