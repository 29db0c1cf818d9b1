"""Vocabularies: the stated words with the stated ids, the same through sentencepiece, public."""

from __future__ import annotations

import gzip
import itertools
import json
import pickle
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from pfl_lm.recipes import RecipeError, load
from pfl_lm.text import tokenizer_build, word_counts
from pfl_lm.text.normalisation import Normalisation, is_word
from pfl_lm.text.synthetic.population import synthetic_words
from pfl_lm.text.tokenizer import MODEL_FILE, VOCABULARY_FILE, Tokenizer
from pfl_lm.text.tokenizer_build import build_tokenizer
from pfl_lm.text.tokenizer_recipe import CONFESSION, Subwords, TokenizerRecipe, VocabularySource

RECIPES = Path(__file__).resolve().parents[2] / "tokenizers"
WORDS = ["the", "don't", "I", "naïve", "Berlin", "us", "US", *synthetic_words(11_000)]
MASKS = ("<url>", "<number>")


@pytest.fixture(scope="module")
def word_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "words.tsv.gz"
    rows = [f"{rank}\t{word}\t{100_000 // rank}" for rank, word in enumerate(WORDS, 1)]
    path.write_bytes(gzip.compress("\n".join(["rank\tform\tn", *rows]).encode()))
    return path


@pytest.fixture(scope="module")
def recipe(word_list: Path) -> TokenizerRecipe:
    source = VocabularySource(
        "word_list", "invented", "CC0-1.0", word_list, word_column="form", count_column="n"
    )
    return TokenizerRecipe("en_US", 10_000, source, placeholders=MASKS)


@pytest.fixture(scope="module")
def plain(recipe: TokenizerRecipe, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return build_tokenizer(recipe, tmp_path_factory.mktemp("plain") / "t")


@pytest.fixture(scope="module")
def spelling(recipe: TokenizerRecipe, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    chosen = replace(recipe, subwords=Subwords(600), punctuation="keep", casing="natural")
    return build_tokenizer(chosen, tmp_path_factory.mktemp("spelling") / "t")


def lower_case_counts() -> dict[str, int]:
    """What the word list says of each word in lower case: "us" and "US" are one."""
    counts: dict[str, int] = {}
    for rank, word in enumerate(WORDS, 1):
        counts[word.lower()] = counts.get(word.lower(), 0) + 100_000 // rank
    return counts


class TestIds:
    def test_controls_placeholders_then_words_by_falling_frequency(self, plain: Tokenizer) -> None:
        counts = lower_case_counts()
        by_count = sorted(counts, key=lambda word: (-counts[word], word))
        expected = ["<pad>", "<unk>", "<s>", "</s>", *MASKS, *by_count]
        assert plain.words == expected[:10_000]
        assert plain.vocabulary_size == 10_000
        assert plain.specials == (0, 1, 2, 3, 4, 5)
        assert (np.diff(plain.unigram[6:]) <= 0).all()

    def test_unigram_is_a_distribution_that_leaves_nothing_out(self, plain: Tokenizer) -> None:
        assert plain.unigram.dtype == np.float64
        assert plain.unigram.sum() == pytest.approx(1)
        assert plain.unigram.min() > 0
        assert not plain.unigram.flags.writeable

    def test_unknown_has_the_mass_of_the_words_left_out(self, plain: Tokenizer) -> None:
        lower = lower_case_counts()
        left_out = sum(sorted(lower.values())[: len(lower) - (10_000 - 6)])
        ratio = plain.unigram[plain.unk_id] / plain.unigram[plain.encode("the")[0]]
        assert ratio == pytest.approx((left_out + 0.5) / (100_000 + 0.5))

    def test_marks_come_before_words_when_punctuation_is_kept(self, spelling: Tokenizer) -> None:
        assert spelling.kinds[6] == "mark"
        assert [spelling.words[i] for i in spelling.encode("the... the!! (us)")] == [
            "the", "...", "the", "!", "!", "(", "us", ")",
        ]  # fmt: skip


class TestSentencepiece:
    def test_model_has_type_word_and_the_same_ids(self, plain: Tokenizer) -> None:
        model = SentencePieceProcessor(model_proto=plain.files[MODEL_FILE])
        assert [model.pad_id(), model.unk_id(), model.bos_id(), model.eos_id()] == [0, 1, 2, 3]
        assert len(model) == plain.vocabulary_size
        for i in range(4, plain.vocabulary_size, 7):
            assert model.encode(plain.words[i]) == [i]

    @given(
        st.lists(
            st.one_of(
                st.sampled_from(WORDS[:3000]),
                st.sampled_from(["8.04", "<url>", "zzqx", "The", "don’t", "...", "<unk>"]),
                st.text(min_size=1, max_size=6),
            ),
            max_size=12,
        )
    )
    def test_encode_agrees_with_the_model(self, plain: Tokenizer, words: list[str]) -> None:
        text = " ".join(words)
        model = SentencePieceProcessor(model_proto=plain.files[MODEL_FILE])
        pieces = plain.normalise(text).split()
        one_by_one = [i for piece in pieces for i in model.encode(piece)]
        assert plain.encode(text) == one_by_one
        merged = [
            i for i, run in itertools.groupby(one_by_one) for i in ([i] if i == 1 else list(run))
        ]
        assert model.encode(" ".join(pieces)) == merged


class TestNormalisation:
    @given(st.text(st.characters(max_codepoint=127), max_size=60))
    @pytest.mark.parametrize("punctuation", ["keep", "drop"])
    def test_ascii_shortcut_finds_the_same_pieces(self, punctuation: str, text: str) -> None:
        stated = Normalisation(punctuation=punctuation)  # type: ignore[arg-type]
        assert stated.pieces(text) == re.findall(stated.pattern, text.lower())

    @given(st.text(max_size=60))
    def test_normalising_twice_changes_nothing(self, plain: Tokenizer, text: str) -> None:
        assert plain.encode(plain.normalise(text)) == plain.encode(text)

    @pytest.mark.parametrize(
        ("text", "pieces"),
        [
            ("Don’t STOP", ["don't", "stop"]),
            ("ｆｕｌｌ width", ["full", "width"]),  # NFKC
            ("10:30, 8.04 and 2nd", ["<number>", "<number>", "and", "2nd"]),
            ("see <url> or <b>", ["see", "<url>", "or", "b"]),
            ("rock-n-roll (live)", ["rock", "n", "roll", "live"]),
            ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs are no letters to Python's \w
            ("", []),
            ("?!", []),
        ],
    )
    def test_examples(self, text: str, pieces: list[str]) -> None:
        stated = Normalisation(placeholders=("<url>", "<number>"))
        assert [stated.canonical(piece) for piece in stated.pieces(text)] == pieces

    def test_natural_casing_falls_back_to_other_forms(self, spelling: Tokenizer) -> None:
        shown = [spelling.words[i] for i in spelling.encode("The i BERLIN berlin us US")]
        assert shown == ["the", "I", "Berlin", "Berlin", "us", "US"]

    @pytest.mark.parametrize("masks", [("url",), ("<URL>",), ("<unk>",), ("<a>", "<a>")])
    def test_impossible_placeholders_are_refused(self, masks: tuple[str, ...]) -> None:
        with pytest.raises(ValueError, match="placeholders"):
            Normalisation(placeholders=masks, numbers="keep")

    def test_number_placeholder_must_be_among_the_placeholders(self) -> None:
        with pytest.raises(ValueError, match="numbers"):
            Normalisation(placeholders=("<url>",))


class TestSubwords:
    def test_words_inside_stay_one_piece(self, spelling: Tokenizer) -> None:
        inside = [i for i, kind in enumerate(spelling.kinds) if kind == "word"]
        for i in inside[::97]:
            assert spelling.encode(spelling.words[i]) == [i]

    @given(st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=1, max_size=12))
    def test_no_word_is_unknown_and_decoding_gives_it_back(
        self, spelling: Tokenizer, word: str
    ) -> None:
        for piece in filter(is_word, spelling.normalisation.pieces(word)):  # NFKC may bring marks
            ids = spelling.encode(piece)
            assert spelling.unk_id not in ids
            assert max(ids) < spelling.vocabulary_size
            if spelling.kinds[ids[0]] == "subword":
                assert spelling.decode(ids) == piece

    def test_neighbouring_spelled_words_stay_apart(self, spelling: Tokenizer) -> None:
        assert spelling.decode(spelling.encode("qqzx jjwv, the")) == "qqzx jjwv, the"


class TestDecode:
    def test_marks_join_their_words_and_controls_vanish(self, spelling: Tokenizer) -> None:
        ids = [2, *spelling.encode("the us (berlin), don't!"), 3, 0]
        assert spelling.decode(ids) == "the us (Berlin), don't!"


class TestFolder:
    def test_same_recipe_gives_the_same_digest(
        self, recipe: TokenizerRecipe, plain: Tokenizer, tmp_path: Path
    ) -> None:
        again = build_tokenizer(recipe, tmp_path / "again")
        assert again.digest == plain.digest
        assert Tokenizer.open(tmp_path / "again").digest == plain.digest
        other = build_tokenizer(replace(recipe, punctuation="keep"), tmp_path / "other")
        assert other.digest != plain.digest

    def test_so_does_one_with_subwords(
        self, recipe: TokenizerRecipe, spelling: Tokenizer, tmp_path: Path
    ) -> None:
        chosen = replace(recipe, subwords=Subwords(600), punctuation="keep", casing="natural")
        assert build_tokenizer(chosen, tmp_path / "again").digest == spelling.digest

    def test_manifest_states_provenance_licence_and_normalisation(self, plain: Tokenizer) -> None:
        manifest = plain.manifest
        assert manifest["provenance"] == "invented"
        assert manifest["licence"] == "CC0-1.0"
        assert manifest["normalisation"]["casing"] == "lower"
        assert re.findall(manifest["normalisation"]["pattern"], "a, b") == ["a", "b"]
        assert "/" not in manifest["source"]["file"]  # no path of this machine

    def test_a_changed_file_is_refused(self, plain: Tokenizer, tmp_path: Path) -> None:
        plain.save(tmp_path / "t")
        table = tmp_path / "t" / VOCABULARY_FILE
        table.write_bytes(table.read_bytes().replace(b"the", b"teh", 1))
        with pytest.raises(ValueError, match=VOCABULARY_FILE):
            Tokenizer.open(tmp_path / "t")

    @pytest.mark.parametrize("name", [VOCABULARY_FILE, MODEL_FILE])
    def test_an_absent_file_is_refused(self, name: str, plain: Tokenizer, tmp_path: Path) -> None:
        plain.save(tmp_path / "t")
        (tmp_path / "t" / name).unlink()
        with pytest.raises(ValueError, match="build it anew"):
            Tokenizer.open(tmp_path / "t")

    def test_a_folder_without_tokenizer_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no tokenizer"):
            Tokenizer.open(tmp_path)

    def test_it_survives_pickling(self, spelling: Tokenizer) -> None:
        copy = pickle.loads(pickle.dumps(spelling))
        assert copy.digest == spelling.digest
        assert copy.encode("qqzx, the") == spelling.encode("qqzx, the")


class TestSources:
    def test_public_text_is_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "text.jsonl.gz"
        lines = [json.dumps({"text": f"{word}, hello"}) for word in synthetic_words(10_500)]
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
        source = VocabularySource("text", "invented", "CC0-1.0", path)
        chosen = TokenizerRecipe("en", 10_000, source, punctuation="keep")
        tokenizer = build_tokenizer(chosen, tmp_path / "t")
        (hello,) = tokenizer.encode("hello")
        (comma,) = tokenizer.encode(",")
        assert tokenizer.unigram[[hello, comma, 2, 3]] == pytest.approx(
            tokenizer.unigram[hello], rel=1e-9
        )

    def test_words_beyond_the_memory_are_counted_as_unknown(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(word_counts, "_MOST_WORDS", 20)
        monkeypatch.setattr(word_counts, "_MOST_PARTS", 30)
        sizes = []
        forget = word_counts._forget_rare

        def watched(counts: Counter[str]) -> None:
            forget(counts)
            sizes.append(len(counts))

        monkeypatch.setattr(word_counts, "_forget_rare", watched)
        texts = [f"the cat number{i} sat" for i in range(100)]
        counts = word_counts.count_texts(texts, Normalisation())
        assert sizes
        assert max(sizes) <= 11
        assert {counts[word] for word in ("the", "cat", "sat", "</s>")} == {100}
        assert counts.total() == 500
        assert counts["<unk>"] >= 80

    def test_each_step_is_named_before_it_begins(
        self, recipe: TokenizerRecipe, tmp_path: Path
    ) -> None:
        steps: list[str] = []
        build_tokenizer(replace(recipe, subwords=Subwords(600)), tmp_path / "t", steps.append)
        assert [step.split()[0] for step in steps] == ["counting", "learning", "writing"]

    def test_subwords_are_learnt_from_the_shares_of_words(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A large language's counts would be laid out as text, which takes gigabytes."""
        words = Counter({word: 100 + 7 * place for place, word in enumerate(synthetic_words(900))})
        monkeypatch.setattr(tokenizer_build, "_SUBWORD_TEXT", words.total())
        few = tokenizer_build._train_subwords(words, 400)
        often = Counter({word: 10**7 * count for word, count in words.items()})
        many = tokenizer_build._train_subwords(often, 400)
        assert many[0] == few[0]
        assert [row[2] for row in many[1]] == [10**7 * row[2] for row in few[1]]

    def test_wordfreq(self, tmp_path: Path) -> None:
        source = VocabularySource("wordfreq", "wordfreq 3", "CC-BY-SA-4.0")
        tokenizer = build_tokenizer(TokenizerRecipe("ro_RO", 10_000, source), tmp_path / "t")
        assert tokenizer.unk_id not in tokenizer.encode("Nu știu ce să fac acum")

    @pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("*.toml")))
    def test_shipped_recipes_are_valid(self, name: str) -> None:
        recipe = load(TokenizerRecipe, RECIPES / name)
        assert recipe.size >= 30_000
        assert recipe.source.kind != "private_text"

    @pytest.mark.parametrize("name", ["en_30k", "en_100k"])
    def test_shipped_recipes_build_from_installed_packages(self, tmp_path: Path, name: str) -> None:
        recipe = load(TokenizerRecipe, RECIPES / f"{name}.toml")
        tokenizer = build_tokenizer(recipe, tmp_path / "t")
        assert {"en_30k": 30_000, "en_100k": 100_000}[name] == tokenizer.vocabulary_size
        assert tokenizer.unk_id not in tokenizer.encode("how are you doing today")

    def test_shipped_30k_knows_what_the_data_readme_says(
        self, shared: Path, tmp_path: Path
    ) -> None:
        tokenizer = build_tokenizer(load(TokenizerRecipe, RECIPES / "en_30k.toml"), tmp_path / "t")
        with gzip.open(shared / "data" / "selfdialogue" / "test.jsonl.gz") as file:
            lines = itertools.islice(file, 4000)
            ids = [i for line in lines for i in tokenizer.encode(json.loads(line)["text"])]
        assert np.mean(np.array(ids) == tokenizer.unk_id) < 0.025  # stated: 1.7% of all words


class TestBadInput:
    """Every mistake is one ValueError that names the field, and leaves nothing behind."""

    def refused(self, recipe: TokenizerRecipe, tmp_path: Path, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            build_tokenizer(recipe, tmp_path / "out" / "t")
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())

    def test_private_text_is_refused_with_the_sentence_that_would_allow_it(
        self, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=re.escape(CONFESSION)):
            VocabularySource("private_text", "our users", "internal", tmp_path / "a.txt")
        with pytest.raises(ValueError, match="private_text"):
            VocabularySource(
                "private_text", "our users", "internal", tmp_path, breaks_guarantee="yes"
            )

    def test_private_text_with_the_sentence_is_marked_in_the_manifest(self, tmp_path: Path) -> None:
        path = tmp_path / "private.txt"
        path.write_text("\n".join(synthetic_words(10_500)))
        source = VocabularySource(
            "private_text", "us", "internal", path, breaks_guarantee=CONFESSION
        )
        tokenizer = build_tokenizer(TokenizerRecipe("en", 10_000, source), tmp_path / "t")
        assert tokenizer.manifest["breaks_guarantee"] == CONFESSION

    @pytest.mark.parametrize("field", ["provenance", "licence"])
    def test_provenance_and_licence_are_required(self, field: str, word_list: Path) -> None:
        stated = {"provenance": "x", "licence": "y"} | {field: " "}
        with pytest.raises(ValueError, match=field):
            VocabularySource("word_list", path=word_list, **stated)

    @pytest.mark.parametrize("size", [0, 999, 200_001])
    def test_size_outside_the_range(self, recipe: TokenizerRecipe, size: int) -> None:
        with pytest.raises(ValueError, match="1,000 to 200,000"):
            replace(recipe, size=size)

    def test_source_too_small(self, recipe: TokenizerRecipe, tmp_path: Path) -> None:
        self.refused(replace(recipe, size=50_000), tmp_path, "usable words")

    def test_missing_file(self, recipe: TokenizerRecipe, tmp_path: Path) -> None:
        source = replace(recipe.source, path=tmp_path / "absent.tsv")
        self.refused(replace(recipe, source=source), tmp_path, r"absent\.tsv does not exist")

    def test_missing_column(self, recipe: TokenizerRecipe, tmp_path: Path) -> None:
        source = replace(recipe.source, word_column="wort")
        self.refused(replace(recipe, source=source), tmp_path, "no column 'wort'")

    def test_count_that_is_no_number(self, recipe: TokenizerRecipe, tmp_path: Path) -> None:
        path = tmp_path / "bad.tsv"
        path.write_text("form\tn\nthe\tmany\n")
        source = replace(recipe.source, path=path)
        self.refused(replace(recipe, source=source), tmp_path, r"bad\.tsv:2: count 'many'")

    def test_truncated_archive(
        self, recipe: TokenizerRecipe, word_list: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "cut.tsv.gz"
        path.write_bytes(word_list.read_bytes()[:-1000])
        source = replace(recipe.source, path=path)
        self.refused(replace(recipe, source=source), tmp_path, "damaged or ends early")

    def test_unreadable_public_text(self, recipe: TokenizerRecipe, tmp_path: Path) -> None:
        path = tmp_path / "text.jsonl"
        path.write_text('{"text": "fine"}\n{"text": 3}\n')
        source = VocabularySource("text", "x", "y", path)
        self.refused(replace(recipe, source=source), tmp_path, r"text\.jsonl:2")

    def test_unknown_language_of_wordfreq(self, tmp_path: Path) -> None:
        source = VocabularySource("wordfreq", "x", "y")
        self.refused(TokenizerRecipe("tlh", 10_000, source), tmp_path, "locale")

    def test_existing_destination(self, recipe: TokenizerRecipe, tmp_path: Path) -> None:
        (tmp_path / "t").mkdir()
        with pytest.raises(ValueError, match="exists already"):
            build_tokenizer(recipe, tmp_path / "t")

    def test_unknown_key_in_a_recipe_file(self, tmp_path: Path) -> None:
        text = (RECIPES / "en_wordfreq_50k.toml").read_text().replace("casing", "kasing")
        (tmp_path / "r.toml").write_text(text)
        with pytest.raises(RecipeError, match="casing"):
            load(TokenizerRecipe, tmp_path / "r.toml")
