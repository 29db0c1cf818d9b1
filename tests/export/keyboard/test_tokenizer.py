"""The page's tokenizer against Python's, in Node: the same ids, whatever the text."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfl_lm.evaluation.suggestions import begins_with
from pfl_lm.export.test_vectors import PrefixMask
from pfl_lm.export.vocabulary import BlockList
from pfl_lm.text import wordfreq_list
from pfl_lm.text.letters import LOOK_ALIKES, describe, same_letters
from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.tokenizer import CONTROLS, Tokenizer
from pfl_lm.text.tokenizer_assemble import assemble
from pfl_lm.text.written_forms import Cutter, table

PAGE = Path(__file__).resolve().parents[3] / "pfl_lm" / "keyboard" / "page"
WORDS = [
    "the",
    "it",
    "a",
    "darn",
    "hello",
    "o'clock",
    "naïve",
    "straße",
    "ışık",
    "i",
    "κόσμος",
    "l'",
    "école",
    "qu",
    "👍🏽",
    "🇩🇪",
    "❤️",
    "é",
]
PARTS = [
    *WORDS, "İ", "I", "IŞIK", "ΚΌΣΜΟΣ", "ß", "ẞ", "8.04", "10:30", "...", "..", ",", "'", "’", "“",
    "l'", "d'h", "qu'il", "l'école", "L'", "Qu'Il", "L’École", "D'İ",
    "·", "-", "_", "<url>", "<unk>", "\x1c", "\x1f", "\x85",
    "\xa0", "\ufeff", "\u2028", "\u3000", "\u200d", "\ufe0f", "\u0301", "\u0301" * 40,
    "\U0001d165" * 40, "\U0001f469\u200d\U0001f4bb", "\U0001f3fd", "\U0001f1e9", "1\ufe0f\u20e3",
    "हिन्दी", "ｆｕｌｌ", "我今天", "\0", "\t", "\n", " ", " ", " ", "a", "B", "ç", "Ş", "ș", "№",
    "½", "٣", "צה״ל", "ג׳ורג׳", "׳", "״", "\xad", "\u200b", "\u200e", "\u200f", "\u202a", "\u202e",
    "\u2060", "\u2066", "\u2069", "\u061c", "a\u200f\u0301",
]  # fmt: skip
RUN = """
import { createRequire } from "module";
import { Tokenizer } from "./tokenizer.js";
const require_ = createRequire(import.meta.url);
const given = JSON.parse(require_("fs").readFileSync(0, "utf8"));
const { rules, table, blocked, letters, forms, calls } = given;
const tokenizer = new Tokenizer(rules, table, blocked, letters, forms);
console.log(JSON.stringify(calls.map(([name, ...rest]) => tokenizer[name](...rest))));
"""
DROP = ("drop", "placeholder", ("<url>", "<number>"))
RULES = {
    "drop": Normalisation(placeholders=("<url>", "<number>")),
    "keep": Normalisation(punctuation="keep", placeholders=("<url>", "<number>")),
    "natural": Normalisation("natural", "keep", placeholders=("<url>", "<number>")),
    "numbers": Normalisation(numbers="keep", placeholders=()),
    "tr": wordfreq_list.rules("tr", *DROP),
    "de": wordfreq_list.rules("de", "keep", *DROP[1:]),
    "fr": wordfreq_list.rules("fr", *DROP),
    "ar": wordfreq_list.rules("ar", *DROP),
    "ca": wordfreq_list.rules("ca", *DROP),
    "he": wordfreq_list.rules("he", "keep", *DROP[1:]),
    "natural fr": replace(wordfreq_list.rules("fr", *DROP), casing="natural"),
}


def tokenizer_of(rules: Normalisation) -> Tokenizer:
    rows = [(name, "control", 1) for name in CONTROLS]
    rows += [(name, "placeholder", 1) for name in rules.placeholders]
    rows += [(mark, "mark", 1) for mark in [".", ",", "...", "'", "👩‍💻", "1️⃣"]]
    words = {rules.canonical(p): None for word in WORDS for p in rules.pieces(word)}
    rows += [(word, "word", 1) for word in words if word not in [row[0] for row in rows]]
    return assemble(rows, rules, {"provenance": "x", "licence": "y"})


def ask(tokenizer: Tokenizer, calls: list[list[str]], folder: Path, *blocked: str) -> list[Any]:
    """Call methods of the page's tokenizer, in Node; return what they return."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node, which is not installed")
    for name in ("tokenizer.js", "subwords.js"):
        shutil.copy(PAGE / name, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "run.mjs").write_text(RUN)
    given = {
        "rules": tokenizer.normalisation.in_browser() | {"unk_id": tokenizer.unk_id},
        "table": tokenizer.files["vocabulary.tsv"].decode(),
        "blocked": blocked,
        "letters": describe(),
        "forms": tokenizer.files.get("forms.tsv", b"").decode(),
        "calls": calls,
    }
    done = subprocess.run(
        [node, folder / "run.mjs"],
        input=json.dumps(given),
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    answers: list[Any] = json.loads(done.stdout)
    return answers


def some_texts(seed: str, count: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(PARTS, k=draw.randint(0, 8))) for _ in range(count)]


@pytest.mark.parametrize("name", RULES)
def test_page_and_python_cut_text_alike(name: str, tmp_path: Path) -> None:
    tokenizer, texts = tokenizer_of(RULES[name]), some_texts(name, 1500)
    calls = [[method, text] for method in ("split", "encode") for text in texts]
    answers = ask(tokenizer, calls, tmp_path)
    for text, pieces, ids in zip(texts, answers[: len(texts)], answers[len(texts) :], strict=True):
        assert pieces == tokenizer.normalisation.pieces(text), (name, text)
        assert ids == tokenizer.encode(text), (name, text)


def test_page_and_python_read_letters_alike(tmp_path: Path) -> None:
    words = [*some_texts("letters", 1000), *LOOK_ALIKES, "d4rn", "ｄａｒｎ", "70"]
    words += ["की", "क़लम", "क्\u200dया", "நான்", "বলি", "ไม่", "שָׁלוֹם", "d\u0336a\u20ddrn\ufe0f"]
    answers = ask(tokenizer_of(RULES["drop"]), [["sameLetters", word] for word in words], tmp_path)
    assert answers == [same_letters(word) for word in words]


def test_the_page_blocks_what_the_list_blocks(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(RULES["natural"])
    words = ["darn", "Darn", "DÁRN", "supercalifrag", "Supercalifrag", "the", "kick", "bucket"]
    calls = [["isBlocked", word] for word in words]
    answers = ask(tokenizer, calls, tmp_path, "darn", "supercalifrag", "kick the bucket", "")
    assert answers == [True] * 5 + [False] * 3


def test_geresh_and_gershayim_are_a_part_of_what_is_blocked(tmp_path: Path) -> None:
    tokenizer = some_words(RULES["he"], 'צה"ל', "ג'ורג'", "שלום")
    for entry in ("צה״ל", 'צה"ל'):
        (tmp_path / "list.txt").write_text(f"{entry}\n", encoding="utf-8")
        assert BlockList.read(tmp_path / "list.txt", tokenizer).words == ('צה"ל',)
        calls = [["isBlocked", 'צה"ל'], ["split", "אל צה״ל."], ["writtenForms", "אל צה״ל", 'צה"ל']]
        assert ask(tokenizer, calls, tmp_path, entry) == [True, ["אל", 'צה"ל', "."], ['צה"ל']]


def test_a_mark_inside_does_not_make_a_blocked_word_a_new_one(tmp_path: Path) -> None:
    """ "he'll" of the vocabulary is no form of "hell"; what its owner types may be."""
    words = ["d'arn", "dar'n", "DAR'N", "o'clock", "the'n"]
    calls = [[method, word] for method in ("isBlocked", "isBlockedAsNew") for word in words]
    answers = ask(tokenizer_of(RULES["natural"]), calls, tmp_path, "darn!", "zorblax")
    assert answers == [False] * 5 + [True] * 3 + [False] * 2


def test_a_keycap_is_no_word(tmp_path: Path) -> None:
    """Neither a block list's, nor half-typed, nor one that its owner might teach the keyboard."""
    calls = [["wordsOf", "1️⃣ 2⃣ #️⃣ 3"], ["atCaret", "I 1️⃣"], ["writtenForms", "7️⃣ Bob", "bob"]]
    answers = ask(tokenizer_of(RULES["keep"]), calls, tmp_path)
    assert answers == [["3"], {"before": "I 1️⃣", "typed": ""}, []]


@pytest.mark.parametrize(
    ("name", "text", "before", "typed"),
    [
        ("drop", "hel", "", "hel"),
        ("drop", " 'hel", " '", "hel"),
        ("drop", "well-kno", "well-", "kno"),
        ("drop", "I don", "I ", "don"),
        ("drop", "I don't", "I ", "don't"),
        ("drop", "I don'", "I ", "don'"),
        ("drop", "hello-", "hello-", ""),
        ("drop", "hello. ", "hello. ", ""),
        ("drop", "@hel", "@", "hel"),
        ("keep", "(hel", "(", "hel"),
        ("keep", 'He said "hel', 'He said "', "hel"),
        ("fr", "je vais à l'éc", "je vais à l'", "éc"),
        ("ca", "la pel·líc", "la ", "pel·líc"),
        ("tr", "İS", "", "İS"),
    ],
)
def test_the_word_at_the_caret_is_the_last_that_is_cut(
    name: str, text: str, before: str, typed: str, tmp_path: Path
) -> None:
    (answer,) = ask(tokenizer_of(RULES[name]), [["atCaret", text]], tmp_path)
    assert answer == {"before": before, "typed": typed}


def some_words(rules: Normalisation, *words: str) -> Tokenizer:
    rows = [(name, "control", 1) for name in CONTROLS]
    rows += [(name, "placeholder", 1) for name in rules.placeholders]
    rows += [(word, "word", 1) for word in words]
    return assemble(rows, rules, {"provenance": "x", "licence": "y"})


PREFIXES = {
    "el": (wordfreq_list.rules("el", *DROP), ["ποσό", "πος", "ποσ'", "πω", "θέση", "θες", "ως"],
           ["ΠΟΣ", "ποσ", "πος", "Πος", "ΘΈΣ", "Ως", "Σ", "ς"]),
    "natural": (RULES["natural"], ["Madrid", "madre", "NASA", "quiero", "ΠΟΣΟ", "ποσά"],
                ["madr", "MAD", "Madri", "nas", "Qu", "ΠΟΣ", "πος", "x"]),
    "tr": (RULES["tr"], ["ilk", "ışık", "istanbul"], ["İ", "I", "i", "IŞ", "İS"]),
    "de": (RULES["de"], ["strasse", "gross"], ["Straß", "GROSS", "groß"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PREFIXES)
def test_the_same_words_go_on_from_letters_everywhere(name: str, tmp_path: Path) -> None:
    rules, words, prefixes = PREFIXES[name]
    tokenizer = some_words(rules, *words)
    answers = ask(tokenizer, [["completions", prefix] for prefix in prefixes], tmp_path)
    mask, listed = PrefixMask(tokenizer), np.array([kind == "word" for kind in tokenizer.kinds])
    for prefix, found in zip(prefixes, answers, strict=True):
        assert sorted(found) == np.flatnonzero(listed & begins_with(tokenizer, prefix)).tolist()
        if name in ("el", "natural"):  # without letters that a list reads otherwise
            assert sorted(found) == np.flatnonzero(listed & (mask(prefix)[0] == 0)).tolist()
    assert len(answers[0]) == {"el": 3, "natural": 2}.get(name, 1 + (name == "tr"))


@pytest.mark.parametrize(
    ("name", "text", "word", "form"),
    [
        ("tr", "bugün İpek ve Irmak geldi", "ipek", "İpek"),
        ("tr", "bugün İpek ve Irmak geldi", "ırmak", "Irmak"),
        ("de", "das ist Herr Weißbrodt hier", "weissbrodt", "Weißbrodt"),
        ("fr", "je vois l’Alsacien", "alsacien", "Alsacien"),
        ("fr", "je sais qu'Élodie vient", "élodie", "Élodie"),
        ("drop", "this is O'Hara", "hara", "Hara"),
        ("drop", "this is Zorblax", "zorblax", "Zorblax"),
    ],
)
def test_a_new_word_keeps_its_owner_s_spelling(
    name: str, text: str, word: str, form: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(replace(RULES[name], elided=RULES[name].elided or ()))
    calls = [["writtenForms", text, word], ["split", text]]
    forms, pieces = ask(tokenizer, calls, tmp_path)
    assert forms == [form]
    assert word in pieces
    assert (form, word) in [found[:2] for found in Cutter(tokenizer.normalisation).message(text)]


def test_words_are_shown_as_they_are_written(tmp_path):
    plain = tokenizer_of(RULES["de"])
    rows = [(word, kind, 1) for word, kind in zip(plain.words, plain.kinds, strict=True)]
    forms = table({"strasse": "Straße", "hello": "HELLO"})
    shown = assemble(rows, RULES["de"], {"provenance": "x", "licence": "y"}, forms=forms)
    calls = [["shown", id] for id in range(shown.vocabulary_size)]
    answers = ask(shown, calls, tmp_path)
    assert answers == [shown.shown(id) for id in range(shown.vocabulary_size)]
    assert "Straße" in answers
    assert "strasse" not in answers
    assert ask(plain, calls, tmp_path) == plain.words
