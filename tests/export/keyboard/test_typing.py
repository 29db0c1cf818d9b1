"""What the page's keys do to a text, in Node: layouts, slips of the finger, the bar, the editor."""

from __future__ import annotations

import json
import shutil
import subprocess
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import wordfreq

from pfl_lm.keyboard.site import PAGE
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.text.wordfreq_list import language_of
from tests.export.keyboard.test_tokenizer import RULES

RECIPES = Path(__file__).resolve().parents[3] / "tokenizers" / "locales"
SETUP = """
import fs from "fs";
import { Corrector } from "./autocorrect.js";
import { arrange } from "./bar.js";
import { Editor } from "./editor.js";
import { Layouts } from "./layouts.js";
import { Lexicon } from "./lexicon.js";
import { begins, cased, shapeOf } from "./text_rules.js";
import { Tokenizer } from "./tokenizer.js";
const data = JSON.parse(fs.readFileSync("./layouts.json"));
const given = JSON.parse(fs.readFileSync(0, "utf8"));
"""
WORDS = {  # how often people write them, of a thousand
    "the": 50, "you": 30, "are": 20, "how": 10, "who": 5, "hello": 3, "help": 3, "don't": 30,
    "dont": 1, "its": 14, "it's": 20, "well": 10, "we'll": 2, "friend": 4, "tycoon": 1, "boat": 2,
    "boats": 1, "cats": 2, "cat": 3, "dogs": 2, "dog": 3, "trees": 2, "tree": 3, "été": 2,
    "for": 20, "fir": 1, "because": 5, "keyboard": 1, "hell": 2, "this": 9, "that": 9, "there": 9,
    "jealous": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A function that runs a script beside the page's modules and returns its answer."""
    if (program := shutil.which("node")) is None:
        pytest.skip("needs Node, which is not installed")
    folder = tmp_path_factory.mktemp("page")
    for path in [*PAGE.glob("*.js"), *PAGE.glob("*.json")]:
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def run(script: str, given: Any = None) -> Any:
        (folder / "run.js").write_text(SETUP + script)
        done = subprocess.run(
            [program, "run.js"], cwd=folder, input=json.dumps(given), capture_output=True,
            encoding="utf-8", check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_the_page_stays_small() -> None:
    sizes = {path.name: path.stat().st_size for path in PAGE.iterdir()}
    assert sum(sizes.values()) < 200_000, (
        "what a phone loads beside the model, its words and the runtime"
    )


# ── layouts ────────────────────────────────────────────────────────────────────────────────────


def head(locale: str) -> set[str]:
    """Letters of a locale's frequent words, in the scripts of its language."""
    words = wordfreq.top_n_list(language_of(locale), 1500, wordlist="small")
    if locale == "el_GR":
        words = [word.upper().lower() for word in words]  # knows the final sigma
    letters = [one for word in words for one in unicodedata.normalize("NFC", word)]
    counts = Counter(one for one in letters if unicodedata.category(one)[0] in "LM")
    scripts: Counter[str] = Counter()
    for one, count in counts.items():
        scripts[unicodedata.name(one).split()[0]] += count
    ((ours, _),) = scripts.most_common(1)
    return {one for one, n in counts.items() if n > 1 and unicodedata.name(one).split()[0] == ours}


def test_every_letter_of_a_locale_s_frequent_words_can_be_typed(node) -> None:
    locales = sorted(path.stem for path in RECIPES.glob("*.toml"))
    script = """
    console.log(JSON.stringify(given.map((locale) => {
      const layouts = new Layouts(data, locale);
      const typable = (name) => {
        const map = layouts.open(name), keys = [...map.rows, ...(map.shifted ?? [])].flat();
        return [...keys, ...keys.flatMap((key) => map.alternatives(key))].join("");
      };
      return layouts.locale.layouts.map((name) => [name, typable(name)]);
    })));
    """
    assert len(locales) > 40
    for locale, answers in zip(locales, node(script, locales), strict=True):
        letters = head(locale)
        for name, typable in answers:
            assert name in json.loads((PAGE / "layouts.json").read_text("utf-8"))["layouts"]
            written = set(unicodedata.normalize("NFC", typable)) | set(typable)
            assert letters <= written, (locale, name, letters - written)


def test_layouts_hold_together(node) -> None:
    script = """
    const parted = (rows) => rows?.map((row) => row.split(" ")) ?? null;
    console.log(JSON.stringify(Object.entries(data.layouts).map(([name, layout]) => ({
      name, rows: parted(layout.rows), shifted: parted(layout.shifted),
      used: Object.values(data.locales).some((one) => one.layouts.includes(name))
        || data.latin.includes(name),
    }))));
    """
    for layout in node(script):
        keys = [key for row in layout["rows"] for key in row]
        assert len(layout["rows"]) == 3
        assert len(keys) == len(set(keys)), layout["name"]
        assert max(map(len, layout["rows"])) <= 12, layout["name"]
        assert layout["used"], layout["name"]
        if layout["shifted"]:
            assert [*map(len, layout["shifted"])] == [*map(len, layout["rows"])], layout["name"]


def test_a_locale_chooses_its_layout_and_offers_others(node) -> None:
    script = """
    const about = (locale, name) => {
      const layouts = new Layouts(data, locale), map = layouts.open(name);
      return [map.id, layouts.names.length > 1, map.alternatives("e").slice(0, 3), map.upper("i"),
        map.comma, map.stop, map.shifts, map.offered(map.rows[0][2], true).slice(0, 1)];
    };
    console.log(JSON.stringify(given.map(([locale, name]) => about(locale, name))));
    """
    asked = [["fr_FR", ""], ["fr-CA", ""], ["tr_TR", ""], ["ar_EG", ""], ["hi_IN", ""], ["art", ""],
             ["de_DE", "azerty"], ["de_DE", "arabic"]]  # fmt: skip
    fr, ca, tr, ar, hi, art, chosen, wrong = node(script, asked)
    assert fr == ["azerty", True, ["é", "è", "ê"], "I", ",", ".", True, ["É"]]
    assert ca[0] == art[0] == "qwerty"
    assert tr[3] == "İ"
    assert (ar[0], ar[3:]) == ("arabic", ["i", "،", ".", False, ["3"]])
    assert (hi[0], hi[5], hi[6], hi[7]) == ("hindi", "।", True, ["ऑ"]), "of the shifted key"
    assert chosen[0] == "azerty"
    assert wrong[0] == "qwertz_de", "not among the locale's"


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
    const words = (typed) => corrector.completions(typed, chance, 2).map(({ id }) => tokenizer.words[id]);
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
      begins("हाँ। "), cased("été", "upper", "xx-not a locale")]));
    """
    assert node(script) == ["İstanbul", "I'm", "i", "lower", True, True, "ÉTÉ"]
