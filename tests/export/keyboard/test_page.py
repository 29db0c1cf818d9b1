"""The keyboard in a browser: type, see suggestions, tap one, learn a word, forget it.

Once with the graphs computed by the local server (by torch, so that nothing needs to be
installed), once with ONNX Runtime Web in the page, which skips where that is not here.
"""

from __future__ import annotations

import importlib.util

import pytest

from pfl_lm.export import build, test_vectors
from pfl_lm.export.bundle import opened
from pfl_lm.export.formats import registry as formats
from pfl_lm.export.test_vectors import (
    invent_texts,
    own_words_vectors,
    same_mixture,
    text_vectors,
)
from pfl_lm.keyboard import runtime
from pfl_lm.keyboard.site import Site

ONNX = formats.FORMATS["onnx"]  # as it is before a fixture replaces it for the whole module
READY = "document.documentElement.classList.contains('ready')"
TEXT = "document.getElementById('text').value"
LETTER = "t"  # invented words begin with it
SHOWN = "app.suggestions.filter(Boolean).map((one) => one.text)"


@pytest.fixture(scope="module", params=["server", "page"])
def address(request, browser, serving, source, text, tmp_path_factory):
    if request.param == "server":
        folder = request.getfixturevalue("bundle_folder")
    else:
        if remedy := runtime.missing():
            pytest.skip(remedy)
        if importlib.util.find_spec("onnxscript") is None:
            pytest.skip("needs the onnx extra, to convert the graphs")
        folder = tmp_path_factory.mktemp("page") / "bundle"
        config = build.ExportConfig(formats=("onnx",), precisions=("fp32",), train=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(formats.FORMATS, "onnx", ONNX)
            # The source is made louder than any trained model, and so its rounding: 1.03e-5.
            patch.setattr(test_vectors, "GRADIENT_TOLERANCE", 3e-5)
            build.export(source, folder, config, text)
    with opened(folder) as bundle:
        yield serving(Site.of(bundle, "fp32", server=request.param == "server"))


@pytest.fixture
def page(browser, address):
    """The page, opened anew, with an empty memory."""
    browser.events.clear()
    browser.open(address)
    browser.until(f"window.app && {READY} && !app.working")
    return browser


def write(page, text: str) -> None:
    """Type with fingers, and wait for the suggestions to what was typed."""
    page.tap_text(text)
    settle(page)


def settle(page) -> None:
    page.until(
        "(() => { const {before, typed} = app.tokenizer.atCaret(app.text.value);"
        "return document.documentElement.dataset.suggested === `${before}|${typed}`; })()"
    )


def send(page, text: str) -> None:
    count = page.run("app.personal.messages.length")
    page.run(f"app.text.value = {text!r}; app.changed(); 1")
    page.tap('.key[data-key="send"]')
    page.until(f"app.personal.messages.length === {count + 1} && !app.working")


class TestTyping:
    def test_suggestions_come_before_any_letter(self, page):
        shown = page.until(f"{SHOWN}.length === 3 && {SHOWN}")
        assert all(word[0].isupper() for word in shown), "a sentence begins"

    def test_letters_narrow_them(self, page, source):
        word = next(w for w in source.tokenizer.words[4:] if len(w) > 2)
        write(page, word[:2])
        shown = [word.lower() for word in page.run(SHOWN)]
        assert shown
        assert all(one.startswith(word[:2]) for one in shown)

    def test_a_tap_puts_the_word_and_a_space(self, page):
        write(page, LETTER)
        best = page.run("app.suggestions[1].text")
        page.tap(".bar .best")
        settle(page)
        assert page.run(TEXT) == f"{best} "
        page.tap('.key[data-key="."]')
        assert page.run(TEXT) == f"{best}. ", "the mark joins the word"

    def test_the_delete_key_and_the_shift_key(self, page):
        write(page, "ab")
        assert page.run(TEXT) == "Ab"
        page.tap('.key[data-key="erase"]')
        page.tap('.key[data-key="shift"]')
        page.tap_text("c")
        page.tap('.key[data-key="numbers"]')
        page.tap_text("1")
        assert page.run(TEXT) == "AC1"

    def test_physical_keys(self, page):
        page.run("app.text.focus()")
        page.press(LETTER)
        settle(page)
        best = page.run("app.suggestions[1].text")
        page.key("Tab", 9)
        settle(page)
        assert page.run(TEXT) == f"{best} "
        page.key("Enter", 13)
        page.until("document.querySelectorAll('.bubble').length === 1")
        assert page.run(TEXT) == ""

    def test_a_word_does_not_stick_to_the_mark_before_it(self, page):
        page.run("app.text.value = 'hello.'; app.changed(); 1")
        settle(page)
        best = page.run("app.suggestions[1].text")
        page.tap(".bar .best")
        settle(page)
        assert page.run(TEXT) == f"hello. {best} "
        assert best[0].isupper(), "a sentence begins after the space that comes with it"

    def test_a_slip_is_corrected_and_what_else_keys_do(self, page, source):
        word = max((w for w in source.tokenizer.words[4:] if w.isalpha()), key=len)
        slip = word[0] + word
        page.until("app.corrector")
        page.run(
            f"window.meant = app.tokenizer.id({word!r});"
            "app.predictor.chancesNow = () => (id) => id === meant ? 0.5 : 1e-4; 1"
        )
        write(page, slip)
        assert page.run("app.suggestions[0].literal && app.suggestions[1].fixes")
        page.tap_text(" ")
        assert page.run(TEXT) == f"{word.capitalize()} "
        page.tap('.key[data-key="erase"]')
        assert page.run(TEXT) == f"{slip.capitalize()} ", "the correction is undone"
        page.hold('.key[data-key="e"]')
        assert page.run(TEXT).endswith(" 3"), (
            "a long press on a key of the first row writes its digit"
        )
        page.tap('.key[data-key="emoji"]')
        tabs = "[...document.querySelectorAll('.tabs button')].map((tab) => tab.ariaLabel)"
        assert page.run(tabs)[:3] == ["Letters", "Faces", "Hands and people"]
        page.tap('.key[data-key="😄"]')
        assert page.run(TEXT).endswith("😄")
        page.tap('.key[data-key="letters"]')
        page.tap('.key[data-key="numbers"]')
        page.tap('.key[data-key="settings"]')
        page.tap('[name="settings-numberRow"]')
        page.run("document.querySelectorAll('[name=settings-layout]')[2].click()")
        page.tap("#settings .close")
        rows = "[...document.querySelectorAll('.row')].map((row) => row.children[1].dataset.key)"
        assert page.run(rows) == ["2", "z", "s", "w", "emoji"]
        assert page.run("JSON.parse(Object.values(localStorage)[0]).layout") == "azerty"
        page.run("localStorage.clear(); 1")

    def test_a_capital_where_a_sentence_begins(self, page):
        for typed, shift in (("hello ", "off"), ("He said. ", "once")):
            page.run(f"app.text.value = {typed!r}; app.changed(); 1")
            assert page.run("app.keys.shift") == shift

    def test_words_that_are_shown_alike_are_one(self, page):
        ask = "app.predictor.suggest([app.tokenizer.rules.bos_id], '', true, "
        assert len(page.run(f"{ask}() => 'same')")) == 1
        halves = page.run(f"{ask}(id) => id % 2)")
        assert sorted(one["id"] % 2 for one in halves) == [0, 1]
        ids = [one["id"] for one in page.run(f"{ask}(id) => id)")]
        assert len(ids) == len(set(ids)) >= 3

    def test_a_word_that_nobody_knows_is_offered_as_typed(self, page):
        write(page, "qqzz")
        assert page.run("app.suggestions[0].literal") is True
        assert page.run("app.buttons[0].textContent") == "“Qqzz”"

    def test_the_page_reads_words_as_the_model_does(self, page, source):
        for one in text_vectors(
            source.tokenizer, invent_texts(source.tokenizer, frozenset(), None)
        ):
            assert page.run(f"app.tokenizer.encode({one['text']!r})") == one["ids"]


class TestLearning:
    def test_a_habit_is_learnt_shown_and_forgotten(self, page, source):
        words = [w for w in source.tokenizer.words[4:] if w.isalpha()]
        first, then = words[100], words[200]
        place = f"app.predictor.rank(app.predictor.context({first!r}), app.tokenizer.id({then!r}), "
        before = page.run(f"{place}true)")
        for _ in range(3):
            send(page, f"{first} {then}")
        after = page.run(f"{place}true)")
        assert after <= 3 < before
        assert page.run(f"{place}false)") == before, "the model itself has not changed"
        page.tap("#learned-open")
        page.until("document.querySelectorAll('.habits li').length > 0")
        assert first in page.run("document.getElementById('learned-habits').textContent")
        page.tap(f'[aria-label="Forget {then}"]')
        page.until("app.personal.messages.length === 0 && !app.working")
        assert page.run(f"{place}true)") == before, "exactly as if it had never been typed"

    def test_a_new_word_is_learnt_and_forgotten(self, page, source):
        known = next(w for w in source.tokenizer.words[50:] if w.isalpha())
        for _ in range(3):  # so often that no model, whatever its noise, has three likelier words
            send(page, f"{known} zorblax")
        send(page, f"{known} {known}")
        write(page, "zor")
        assert "Zorblax" in page.run(SHOWN)
        page.run("app.text.value = ''; app.changed(); 1")
        write(page, f"{known} ")
        assert "zorblax" in page.run(SHOWN), "it comes back after the word that it followed"
        page.tap("#learned-open")
        page.until("document.querySelectorAll('.words li').length === 1")
        page.tap('[aria-label="Forget zorblax"]')
        page.until("app.personal.messages.length === 1 && !app.working")
        page.tap("#learned .close")
        page.run("app.text.value = ''; app.changed(); 1")
        write(page, "zor")
        assert "Zorblax" not in page.run(SHOWN)

    def test_a_blocked_word_is_not_learnt(self, page):
        page.run("app.tokenizer.refused.add(app.tokenizer.sameLetters('zorblax')); 1")
        send(page, "Zorbláx zorblax zor'blax")
        write(page, "zor")
        assert not [word for word in page.run(SHOWN) if "rbl" in word.lower()]
        assert page.run("app.personal.newWords()") == []

    def test_what_remains_is_what_would_have_been_learnt(self, page, source):
        words = [w for w in source.tokenizer.words[50:] if w.isalpha()]
        chances = f"app.predictor.chances(app.predictor.context({words[1]!r}), true)"
        learnt = f"{chances}.then((p) => app.tokenizer.sorted.map(p))"
        send(page, f"{words[1]} {words[2]}")
        alone = page.run(learnt)
        send(page, f"{words[3]} {words[4]}")
        assert page.run(learnt) != alone
        page.run(f"app.personal.forget({words[4]!r})")
        assert page.run(learnt) == alone

    def test_it_counts_as_the_evaluation_does(self, page, source):
        vectors = own_words_vectors(invent_texts(source.tokenizer, frozenset(), None), 300)
        page.run(
            f"window.own = new app.personal.counted.constructor(app.personal.rule, 2);"
            f"for (const ids of {vectors['messages']}) own.addMessage(ids); 1"
        )
        for stated in vectors["mixtures"]:
            found = page.run(
                f"(() => {{ const {{ factor, shares }} = own.mixture({stated['after']});"
                "return { factor, shares: Object.fromEntries(shares) }; })()"
            )
            assert same_mixture(stated, found)

    def test_a_suggestion_goes_on_from_the_message_before(self, page, source):
        words = [w for w in source.tokenizer.words[50:] if w.isalpha()]
        chance = (
            f"app.predictor.chances([app.tokenizer.rules.bos_id], OWN)"
            f".then((p) => p(app.tokenizer.id({words[9]!r})))"
        )
        own, model = chance.replace("OWN", "true"), chance.replace("OWN", "false")
        page.run("app.personal.counted.mixture = () => ({ factor: 1, shares: new Map() }); 1")
        before = page.run(own), page.run(model)
        assert before[0] == before[1]
        send(page, f"{words[1]} {words[2]}")
        assert page.run(own) != before[0]
        assert page.run(model) == before[1], "the model itself has not changed"

    def test_it_can_be_told_not_to_learn(self, page):
        page.run("app.personal.learning = false")
        page.run("app.text.value = 'something new'; app.changed(); 1")
        page.tap('.key[data-key="send"]')
        page.until("document.querySelectorAll('.bubble').length === 1")
        assert page.run("app.personal.messages.length") == 0

    def test_what_it_kept_may_be_damaged(self, page, address):
        for kept in ("{", "3", '[1, null, {"a": 2}]', '"text"'):
            page.run(f"localStorage.setItem(app.personal.key, {kept!r}); 1")
            page.open(address)
            page.until(f"window.app && {READY} && !app.working")
            assert page.run("app.personal.messages.length") == 0
        page.run("localStorage.clear(); 1")

    def test_it_remembers_only_where_it_may(self, page, address, source):
        word = next(w for w in source.tokenizer.words[50:] if w.isalpha())
        send(page, word)
        assert page.run("localStorage.length") == 0
        page.run("app.personal.keeping = true; app.personal.save(); 1")
        page.open(address)
        page.until(f"window.app && {READY} && app.personal.messages.length === 1 && !app.working")
        page.run("app.personal.keeping = false; app.personal.save(); 1")
        assert page.run("localStorage.length") == 0


class TestPrivacy:
    def test_nothing_is_asked_of_anybody_else(self, page, address):
        send(page, "hello there")
        assert all(one.startswith((address, "data:")) for one in page.requests())

    def test_the_page_s_own_rules_forbid_it(self, page):
        page.run("window.refused = 0; addEventListener('securitypolicyviolation', () => refused++)")
        page.run("fetch('http://127.0.0.1:9/').catch(() => 0)")
        assert page.until("refused === 1")

    def test_in_the_page_no_word_reaches_even_the_server(self, page, request):
        if "server" in request.node.callspec.id:
            pytest.skip("here the server computes")
        before = len(page.requests())
        write(page, "hel")
        send(page, "hello there")
        assert [one for one in page.requests()[before:] if "/run" in one] == []


def test_the_forms_of_the_page_hold_together(page):
    """Every control has a name, and the keys are large enough for a finger."""
    nameless = page.run(
        "[...document.querySelectorAll('button, textarea, input')].filter((e) =>"
        " !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))"
        ".map((e) => e.outerHTML)"
    )
    assert nameless == []
    small = page.run(
        "[...document.querySelectorAll('.key')].map((k) => k.getBoundingClientRect())"
        ".filter((b) => b.width < 31 || b.height < 42).length"
    )
    assert small == 0
    assert page.run("document.documentElement.scrollWidth") == 390
    errors = [e for e in page.events if e["method"] == "Runtime.exceptionThrown"]
    assert errors == []
