"""The catalogue: whole in every language; what a phone's user reads stands in it."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path

import pytest
from babel import Locale

from pfl_lm.keyboard.site import PAGE
from pfl_lm.network import record_page
from pfl_lm.translations import Language, languages

ENGLISH = Language.of("en")
FORM = re.compile(r"^(?P<stem>.+?)(?P<ordinal>_ordinal)?_(?P<form>zero|one|two|few|many|other)$")
VALUE = re.compile(r"\{\{(\w+)\}\}")
BY_VALUE = (
    "state",
    "event",
    "reason",
    "purpose",
    "about",
)  # groups whose keys the code puts together
RECORD = Path(record_page.__file__)
PARTS = [*sorted(PAGE.glob("*.js")), PAGE / "index.html", RECORD, RECORD.parent / "record.html"]


def stem(key: str) -> str:
    found = FORM.match(key)
    return found["stem"] if found else key


def stems(texts) -> dict[str, set[str]]:
    """Every text's values, by the key without its plural form."""
    found: dict[str, set[str]] = {}
    for key, text in texts.items():
        found.setdefault(stem(key), set()).update(VALUE.findall(text))
    return found


def test_english_two_more_languages_and_one_from_right_to_left():
    assert {"en", "es"} < set(languages())
    assert "rtl" in {Language.of(code).direction for code in languages()}


@pytest.mark.parametrize("code", languages())
class TestLanguage:
    def test_has_every_key_with_the_same_values(self, code):
        assert stems(Language.of(code).texts) == stems(ENGLISH.texts)

    def test_has_the_plural_forms_that_it_knows(self, code):
        texts, locale = Language.of(code).texts, Locale(code)
        for key in texts:
            if found := FORM.match(key):
                rule = locale.ordinal_form if found["ordinal"] else locale.plural_form
                assert found["form"] in {*rule.tags, "other"}, key
                assert key.rsplit("_", 1)[0] + "_other" in texts

    def test_has_no_empty_text_and_no_other_marks_than_its_values(self, code):
        for key, text in Language.of(code).texts.items():
            assert text.strip() == text != "", key
            assert not re.search(r"[{}<>]", VALUE.sub("", text)), key

    def test_is_the_direction_of_its_script(self, code):
        assert Language.of(code).direction == Locale(code).text_direction


def test_every_key_is_used_and_every_key_that_is_used_is_there():
    read = "\n".join(path.read_text(encoding="utf-8") for path in PARTS)
    groups = "|".join({key.split(".")[0] for key in ENGLISH.texts})
    used = set(re.findall(rf"[\"'`]((?:{groups})\.\w+)[\"'`]", read))
    known = {stem(key) for key in ENGLISH.texts}
    put_together = {f"record.{name}" for name in record_page.COLUMNS}
    put_together |= {key for key in known if key.split(".")[0] in BY_VALUE}
    part = (PAGE / "part_sheet.js").read_text(encoding="utf-8")
    put_together |= {f"part.{name}" for name in re.findall(r"^    (\w+): ", part, re.MULTILINE)}
    put_together |= {"part.policy_user", "part.policy_device", "part.rounds", "language.name"}
    assert used - known == {"record.html"}  # a file
    assert known - used - put_together == set()


class Reader(html.parser.HTMLParser):
    """Collects what a page says by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.said += [value or "" for name, value in attrs if name in SPOKEN]

    def handle_data(self, data):
        self.said.append(data)


SPOKEN = ("aria-label", "placeholder", "title", "alt")


def test_the_page_s_html_says_nothing_by_itself():
    reader = Reader()
    reader.feed((PAGE / "index.html").read_text(encoding="utf-8"))
    assert [text for text in reader.said if re.search(r"[^\W\d]", text)] == []


@pytest.mark.parametrize("path", sorted(PAGE.glob("*.js")), ids=lambda path: path.name)
def test_no_sentence_stands_in_a_script(path):
    """A capital and two words are a sentence; a browser looks for the rest (test_language.py)."""
    script = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
    assert re.findall(r"[\"`][A-Z][a-z]+ [a-z]+[^\"`\n]*[\"`]", script) == []
    shown = re.findall(
        r"(?:textContent = |setAttribute\(\"aria-label\", )[\"`]([^\"`]*)[\"`]", script
    )
    assert [text for text in shown if re.search(r"[A-Za-z]", text)] == []


class TestText:
    def test_numbers_and_plural_forms_are_the_language_s(self):
        assert Language.of("en").text("record.tasks", count=1) == "1 run or question"
        assert Language.of("en").text("record.tasks", count=1234) == "1,234 runs and questions"
        assert Language.of("es").number("1,234.500") == "1.234,500"
        assert Language.of("es_MX").number(1234) == "1,234"
        assert Language.of("es-XX").number("0.5") == "0,5"
        assert Language.of("ar").text("part.times", count=3) == "\u20683\u2069 مرات"

    def test_a_language_that_is_not_there_is_refused_by_name(self):
        with pytest.raises(ValueError, match="no language 'fr': there are ar, en, es"):
            Language.of("fr")
