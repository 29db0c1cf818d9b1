"""What the page's keys do to a text, in Node: slips of the finger, the bar, the editor."""

from __future__ import annotations

from typing import Any

import pytest

from pfl_lm.keyboard.site import PAGE
from pfl_lm.models.own_words import OwnWordsRule
from pfl_lm.text.normalisation import Normalisation, language_of, letters_of, sentence_ends
from pfl_lm.text.tokenizer import VOCABULARY_FILE, Tokenizer
from pfl_lm.text.written_forms import shown
from tests.export.keyboard.test_tokenizer import PREFIXES, RULES, some_words

WORDS = {  # how often people write them, of a thousand
    "the": 50, "you": 30, "are": 20, "how": 10, "who": 5, "hello": 3, "help": 3, "don't": 30,
    "dont": 1, "its": 14, "it's": 20, "well": 10, "we'll": 2, "friend": 4, "tycoon": 1, "boat": 2,
    "boats": 1, "cats": 2, "cat": 3, "dogs": 2, "dog": 3, "trees": 2, "tree": 3, "été": 2,
    "for": 20, "fir": 1, "because": 5, "keyboard": 1, "hell": 2, "this": 9, "that": 9, "there": 9,
    "jealous": 1,
}  # fmt: skip


def test_the_page_stays_small() -> None:
    sizes = {path.name: path.stat().st_size for path in PAGE.iterdir()}
    assert sum(sizes.values()) < 200_000, (
        "what a phone loads beside the model, its words and the runtime"
    )


# ── slips ──────────────────────────────────────────────────────────────────────────────────────

CORRECT = """
const tokenizer = new Tokenizer(given.rules, given.table);
const corrector = new Corrector(tokenizer, new Layouts(data, "en_US").open(given.layout));
const own = { words: [{ word: "zorblax", share: 1 }], lexicon: new Lexicon(["zorblax"]) };
for (const word of given.accepted ?? []) corrector.accept(word);
const counts = new Map(Object.entries(given.counts));
const chance = (id) => (counts.get(tokenizer.words[id]) ?? 1) / 1000;
console.log(JSON.stringify(given.typed.map((typed) => {
  const found = corrector.correct(typed, chance, { own });
  return found?.sure ? found.word : null;
})));
"""


def vocabulary(counts: dict[str, int]) -> dict[str, Any]:
    from tests.export.keyboard.test_tokenizer import CONTROLS, assemble

    rows = [(name, "control", 1) for name in CONTROLS]
    rows += [(name, "placeholder", 1) for name in RULES["drop"].placeholders]
    rows += [(word, "word", count) for word, count in counts.items()]
    found: Tokenizer = assemble(rows, RULES["drop"], {"provenance": "x", "licence": "y"})
    rules = found.normalisation.in_browser() | {"unk_id": found.unk_id}
    return {"rules": rules, "table": found.files["vocabulary.tsv"].decode(), "counts": counts}


@pytest.fixture(scope="module")
def corrected(node):
    def ask(*typed: str, **changes: Any) -> list[str | None]:
        answers: list[str | None] = node(CORRECT, vocabulary(WORDS) | {"typed": typed, **changes})
        return answers

    return ask


def test_slips_of_each_kind_are_corrected(corrected) -> None:
    meant = {
        "hwo": "how", "helo": "hello", "hellpo": "hello", "jello": "hello", "freind": "friend",
        "becuase": "because", "keybpard": "keyboard", "frriend": "friend", "dont": "don't",
        "Keyboatd": "keyboard", "ete": "été", "zrblax": "zorblax", "Zoeblax": "zorblax",
    }  # fmt: skip
    assert corrected(*meant) == [*meant.values()]


def test_what_is_right_or_may_be_stays(corrected) -> None:
    known = ["who", "help", "fir", "its", "well", "hell", "how"]
    unknown = ["tycoons", "zorblax", "qwxzy", "boat's", "KEYBOATD", "keyboard2", "h", "pneumatic"]
    assert corrected(*known, *unknown) == [None] * 15


def test_a_word_typed_on_purpose_stays(corrected) -> None:
    assert corrected("hwo", "helo", accepted=["Hwo"]) == [None, "hello"]


def test_a_word_that_a_slip_begins_is_completed(node) -> None:
    script = (
        CORRECT
        + """
    const found = (typed) => corrector.completions(typed, chance, 2);
    const words = (typed) => found(typed).map(({ id }) => tokenizer.words[id]);
    process.stdout.write(JSON.stringify(["keyv", "becsu", "zz"].map(words)));
    """
    )
    given = vocabulary(WORDS) | {"typed": []}
    assert node(script.replace("console.log", "void", 1), given) == [["keyboard"], ["because"], []]


def test_neighbours_are_those_of_the_layout(corrected) -> None:
    assert corrected("tgere", layout="qwerty") == ["there"]
    far = corrected("cou", layout="azerty"), corrected("cou", layout="dvorak")
    assert far[0] != ["you"]
    assert corrected("fou", layout="dvorak") == ["you"], "f lies beside y there"


# ── the bar and the editor ─────────────────────────────────────────────────────────────────────


def test_the_bar_always_offers_what_was_typed(node) -> None:
    script = """
    const word = (text, score) => ({ text, score });
    const words = [word("one", .1), word("two", .3), word("three", .2)];
    const own = { text: "zorblax", score: .01, own: true };
    const sign = (one) => one.literal ? "=" : one.fixes ? "!" : "";
    const said = (bar) => bar.map((one) => one && sign(one) + one.text);
    console.log(JSON.stringify([
      arrange("", true, words, null), arrange("", true, [...words, own], null),
      arrange("", true, [...words, { ...own, score: 1 }], null),
      arrange("tw", false, words, { text: "two", sure: true }), arrange("tw", false, words, null),
      arrange("tw", false, [...words, own], null),
      arrange("tw", false, [word("two", .1)], { text: "the", sure: false }),
      arrange("dont", true, words, { text: "don't", sure: true }),
    ].map(said)));
    """
    assert node(script) == [
        ["three", "two", "one"], ["three", "two", "zorblax"], ["two", "zorblax", "three"],
        ["=tw", "!two", "three"], ["=tw", "two", "three"], ["=tw", "two", "zorblax"],
        ["=tw", "two"], ["=dont", "!don't", "two"],
    ]  # fmt: skip


def test_the_fourth_place_has_the_likeliest_emoji(node) -> None:
    script = """
    const words = ["the", "😀", "❤️", "🎉"], chance = (id) => [.9, .1, .3, .2][id];
    console.log(JSON.stringify([likeliest([1, 2, 3], words, chance).text,
      likeliest([1, 3], words, chance).text, likeliest([], words, chance) ?? null,
      likeliest([1], words, null) ?? null]));
    """
    assert node(script) == ["❤️", "🎉", None, None]


EDIT = """
class Text {
  value = ""; selectionStart = 0; selectionEnd = 0;
  setRangeText(text, from, to) {
    this.value = this.value.slice(0, from) + text + this.value.slice(to);
    this.setSelectionRange(from + text.length, from + text.length);
  }
  setSelectionRange(from, to) { [this.selectionStart, this.selectionEnd] = [from, to]; }
}
console.log(JSON.stringify(given.map((keys) => {
  const text = new Text(), accepted = new Set();
  const fix = () => {
    const typed = text.value.slice(0, text.selectionEnd).match(/[a-z]*$/)[0];
    return typed === "hwo" && !accepted.has(typed)
      ? { from: text.selectionEnd - 3, typed, text: "how" } : null;
  };
  const editor = new Editor(text, fix, (typed) => accepted.add(typed));
  for (const key of keys) {
    if (key[0] === "~") editor.press(key.slice(1), true);
    else if (key[0] === ">") editor.choose(text.value.length, key.slice(1), true);
    else editor.press(key);
  }
  return text.value;
})));
"""


def test_keys_change_the_text(node) -> None:
    erase = "erase"
    cases = {
        "how ": [*"hwo "], "how, ": [*"hwo", ",", " "], "hwo ": [*"hwo ", erase],
        "hwo": [*"hwo ", erase, erase], "hwo hw": [*"hwo ", erase, *"hw"],
        "how": [*"hwo a", erase, erase],
        "hwo .": [*"hwo", " ", erase, "."], "how. ": [*"hwo  "], "ab. ": [*"ab  "], "é. ": [*"é  "],
        "é": ["e", "~é"], "hey! ": [">hey", ".", "~!"], "hey. ": [">hey", "."],
        "a": ["a", "👩‍💻", erase],
        "how? ": [*"hwo", ".", "~?", " "],
    }  # fmt: skip
    assert node(EDIT, [*cases.values()]) == [*cases]


def test_capitals_follow_the_language(node) -> None:
    script = """
    console.log(JSON.stringify([cased("istanbul", "title", "tr_TR"), cased("i'm", "lower", "en_US"),
      cased("i", "lower", "fr_FR"), shapeOf("שלום", "", "off"), begins("؟ ".padStart(5, "ا")),
      begins("हाँ। "), cased("été", "upper", "xx-not a locale"), cased("i", "upper", "tr-TR"),
      cased("i", "upper", ""), cased("ikä", "title", "tt_RU"), cased("άλλο", "title", "el_GR"),
      cased("άλλο", "upper", "el_GR"), cased("𞤬𞤵𞤤", "title", "ff_Adlm"), cased("", "title", "")]));
    """
    assert node(script) == ["İstanbul", "I'm", "i", "lower", True, True, "ÉTÉ", "İ", "I",
                            "İkä", "Άλλο", "ΑΛΛΟ", "𞤊𞤵𞤤", ""]  # fmt: skip


def test_page_and_python_begin_sentences_after_the_same_marks(node) -> None:
    locales = ["el_GR", "el", "en_US", "hy_AM", "ur_PK", "am_ET", "elx_XX", ""]
    asked = [(f"λέει{mark} ", locale) for mark in ".!?…,;:؟।॥۔։።፧·-" for locale in locales]
    given = "given.map(([before, locale]) => begins(before, locale))"
    for (before, locale), found in zip(asked, node(f"console.log(JSON.stringify({given}));", asked),
                                       strict=True):  # fmt: skip
        assert found is (before[4] in sentence_ends(locale)), (before, locale)
    begun = (
        "console.log(JSON.stringify([shapeOf('', 'τι; ', 'off', 'el_GR'), shapeOf('', 'so; ')]));"
    )
    assert node(begun) == ["title", "lower"]


def test_the_owner_s_words_go_on_from_a_sigma_in_capitals(node) -> None:
    tokenizer = some_words(PREFIXES["el"][0], "και")
    script = """
    const { Personal } = await import("./personal.js");
    const tokenizer = new Tokenizer(given.rules, given.table);
    const personal = new Personal("test", tokenizer, given.rule);
    personal.count(["και ο Ζορμπλασός", "και ο ζορμπλάς"]);
    const words = (typed) => personal.own(typed, "").map(({ word }) => word);
    console.log(JSON.stringify(["ΖΟΡΜΠΛΑΣ", "ζορμπλας", "ζορμπλάς"].map(words)));
    """
    assert node(script, page_words(tokenizer)) == [["ζορμπλασός"], ["ζορμπλασός"], []]


def test_page_and_python_make_the_same_first_capitals(node) -> None:
    words, locales = ["iyi", "ılık", "άλλο", "élan", "bon", "ø"], ["tr_TR", "az", "el_GR", "fr_FR"]
    asked = [(word, locale) for word in words for locale in locales]
    given = "given.map(([word, locale]) => cased(word, 'title', locale))"
    found = node(f"console.log(JSON.stringify({given}));", asked)
    rules = {one: Normalisation(letters=letters_of(language_of(one))) for one in locales}
    assert found == [shown(word, True, rules[locale]) for word, locale in asked]


def test_a_sentence_begins(node) -> None:
    begun = ["", "He said. ", 'He said. "', "¿", "hola ¿", "नहीं। "]
    goes_on = ["e.g. ", "see the U.S. ", "hello ", "hello, "]
    found = node("console.log(JSON.stringify(given.map(begins)));", [*begun, *goes_on])
    assert found == [True] * len(begun) + [False] * len(goes_on)


def test_a_sentence_begins_after_a_long_text_too(node) -> None:
    """An expression that tries each place of such a text would take hours."""
    script = """
    const parts = ["\\n", '"', ". ", "a.", '."', " "];
    const long = parts.map((one) => one.repeat(1_000_000));
    console.log(JSON.stringify(long.map((text) => [begins(`${text}x`), begins(`x${text}`)])));
    """
    ends = [True, False, True, False, False, False]  # after it; not after a letter that follows it
    assert node(script) == [[False, end] for end in ends]


def page_words(tokenizer) -> dict:
    """What the page knows of a vocabulary, and the rule for its owner's words."""
    ids = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in ("unk", "bos", "eos")}
    return {
        "rules": tokenizer.normalisation.in_browser() | ids,
        "table": tokenizer.files[VOCABULARY_FILE].decode(),
        "rule": {"strengths": OwnWordsRule().strengths, "discounts": OwnWordsRule().discounts},
    }


def test_the_word_at_the_caret_of_a_long_text_is_looked_for_at_its_end(node) -> None:
    script = """
    const tokenizer = new Tokenizer(given.rules, given.table), many = 1_000_000;
    const long = ["a", "a-", "a'", "'", "@", "\\u{10400}"].flatMap((one) => {
      const text = one.repeat(many);
      return [text, `${text} `, `${text} wor`].map((whole) => [whole, tokenizer.atCaret(whole)]);
    });
    console.log(JSON.stringify(long.map(([whole, { before, typed }]) =>
      [whole.startsWith(before), whole === before + typed, typed.length <= 200, typed.slice(-3)])));
    """
    found = node(script, page_words(some_words(PREFIXES["de"][0], "wort")))
    assert all(parts[:3] == [True, True, True] for parts in found)
    assert [parts[3] for parts in found[1::3]] == [""] * 6
    assert [parts[3] for parts in found[2::3]] == ["wor"] * 6


def test_only_as_many_habits_are_read_as_are_shown(node) -> None:
    script = """
    const { Personal } = await import("./personal.js");
    const personal = new Personal("test", new Tokenizer(given.rules, given.table), given.rule);
    personal.count(["ilk ışık istanbul", "istanbul ilk ilk ilk"]);
    const read = [], context = (text) => read.push(text);
    const habits = (most) =>
      personal.habits(context, most).map(({ before, word }) => `${before} ${word}`);
    console.log(JSON.stringify([habits(9), read.splice(0), habits(3), read]));
    """
    words = some_words(PREFIXES["tr"][0], "ilk", "ışık", "istanbul")
    all_habits, _, three, read = node(script, page_words(words))
    newest = [" istanbul", "istanbul ilk", "ilk ilk"]
    assert all_habits == [*newest, " ilk", "ilk ışık", "ışık istanbul"]
    assert three == newest
    assert read == ["", "istanbul", "istanbul ilk"]
