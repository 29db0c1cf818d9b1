"""The layouts of the page's keys, in Node."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path

import wordfreq

from pfl_lm.keyboard.site import PAGE
from pfl_lm.text.wordfreq_list import language_of

RECIPES = Path(__file__).resolve().parents[3] / "tokenizers" / "locales"


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
