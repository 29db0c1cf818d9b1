"""The keyboard page beside other tabs, input methods, a full disk, and a caret that moves."""

from __future__ import annotations

import pytest

from pfl_lm.export.bundle import opened
from pfl_lm.keyboard.site import Site
from tests.export.keyboard.test_page import READY, TEXT, send, settle

FULL = """
Storage.prototype.setItem = () => { throw new DOMException("the quota is used up"); }; 1
"""
KEPT = "JSON.parse(localStorage.getItem(app.personal.key))"
OPEN = f"window.app && {READY} && !app.working && app.corrector"


@pytest.fixture(scope="module")
def address(browser, serving, bundle_folder):
    with opened(bundle_folder) as bundle:
        yield serving(Site.of(bundle, "fp32", server=True))


@pytest.fixture
def page(browser, address):
    """The page, opened anew, with an empty memory."""
    browser.open(address)
    browser.until(OPEN)
    browser.events.clear()
    yield browser
    browser.run("localStorage.clear(); 1")
    assert [e for e in browser.events if e["method"] == "Runtime.exceptionThrown"] == []


def put(page, text: str, caret: int | None = None) -> None:
    """Let a text stand in the field, and the caret in it."""
    page.run(f"app.text.value = {text!r}; app.text.focus(); app.changed(); 1")
    if caret is not None:
        page.run(f"app.text.setSelectionRange({caret}, {caret}); 1")
        page.until(
            "(() => { const { before, typed } = app.wordAt(app.text.selectionEnd);"
            "return app.asked === app.place()"
            " && document.documentElement.dataset.suggested === `${before}|${typed}`; })()"
        )


class TestCaret:
    def test_capitals_follow_the_caret(self, page):
        put(page, "He said. ")
        page.until("app.keys.shift === 'once'")
        put(page, "He said. ", caret=1)
        page.until("app.keys.shift === 'off'")
        put(page, "he said", caret=0)
        page.until("app.keys.shift === 'once'")

    def test_a_mark_takes_the_place_of_no_other_space(self, page):
        put(page, "one two")
        settle(page)
        page.tap(".bar .best")
        page.until("app.editor.spaced")
        page.run("app.text.setSelectionRange(4, 4); 1")
        page.until("!app.editor.spaced")

    def test_a_suggestion_takes_the_place_of_the_whole_word(self, page):
        put(page, "ta, tana ne", caret=6)
        page.until("app.suggestions[1]")
        best = page.run("app.suggestions[1].text")
        page.tap(".bar .best")
        assert page.run(TEXT) == f"ta, {best} ne"
        assert page.run("app.text.selectionEnd") == len(f"ta, {best} ")

    def test_inside_of_a_word_nothing_is_corrected(self, page):
        meant = "app.meant = () => ({ text: 'other', sure: true });"
        put(page, "tana", caret=2)
        assert page.run(f"{meant} app.correction()") is None
        page.run("app.text.setSelectionRange(4, 4); 1")
        assert page.run("app.correction().text") == "other"


class TestInputMethod:
    def test_the_key_that_ends_a_composition_sends_nothing(self, page):
        page.run("app.text.focus()")
        page.compose("ni")
        page.key("Enter", 13)
        for about in ("isComposing: true", "keyCode: 229"):
            page.run(
                "app.text.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', "
                f"{about}, cancelable: true, bubbles: true }})); 1"
            )
        assert page.run("document.querySelectorAll('.bubble').length") == 0


class TestStorage:
    def test_a_full_storage_is_said_and_keeps_nothing_old(self, page):
        send(page, "ta ne")
        page.tap("#learned-open")
        page.tap("#keeping")
        assert page.run(KEPT) == ["ta ne"]
        page.tap("#learned .close")
        page.run(FULL)
        send(page, "na ti")
        assert page.run("document.documentElement.classList.contains('failed')") is False
        assert page.run("localStorage.getItem(app.personal.key)") is None
        page.tap("#learned-open")
        page.until("document.getElementById('learned-note').textContent.includes('quota')")
        assert page.run("document.getElementById('keeping').checked") is False
        page.run("app.settings.set('numberRow', true)")
        assert page.run("app.keys.options.numberRow") is True

    def test_a_choice_not_to_learn_outlives_the_page(self, page, address):
        page.tap("#learned-open")
        page.tap("#learning")
        page.open(address)
        page.until(OPEN)
        assert page.run("app.personal.learning") is False

    def test_what_one_tab_forgets_no_other_keeps(self, page, address):
        send(page, "zorblax")
        page.run("app.personal.keeping = true; app.personal.save(); 1")
        with page.tab():
            page.open(address)
            page.until(f"{OPEN} && app.personal.messages.length === 1")
            page.run("app.sheets.forget(null)")
        page.until("app.personal.messages.length === 0 && !app.working")
        send(page, "ta ne")
        assert page.run(KEPT) == ["ta ne"]

    def test_a_tab_that_keeps_nothing_leaves_what_another_keeps(self, page, address):
        send(page, "ta ne")
        with page.tab():
            page.open(address)
            page.until(OPEN)
            send(page, "na ti")
            page.run("app.personal.keeping = true; app.personal.save(); 1")
        page.until("app.personal.keeping && !app.working")
        send(page, "ti ti")
        assert page.run(KEPT) == ["na ti", "ta ne", "ti ti"]


def test_an_answer_after_a_failure_is_said(page):
    page.run("window.real = app.predictor.graph.run;"
             "app.predictor.graph.run = () => { throw new Error('away'); }; 1")  # fmt: skip
    put(page, "ta ")
    page.until("document.documentElement.classList.contains('failed')")
    page.run("app.predictor.graph.run = real; 1")
    put(page, "ta ne ")
    page.until("!document.documentElement.classList.contains('failed')")
    assert page.run("document.getElementById('status').textContent") == "Runs on this computer"


class TestReach:
    def test_settings_can_be_opened_by_a_physical_keyboard(self, page):
        page.run("document.querySelector('[data-key=numbers]').focus(); 1")
        page.run("document.activeElement.click(); 1")  # as Enter does
        page.until("document.activeElement.dataset.key === 'symbols'")
        for reached in ("letters", "settings"):
            page.key("Tab", 9)
            page.until(f"document.activeElement.dataset.key === '{reached}'")

    def test_every_key_is_seen_on_a_phone_on_its_side(self, page):
        try:
            page.size(640, 320)
            ends = "document.querySelector('[data-key=send]').getBoundingClientRect().bottom"
            page.until(f"{ends} <= innerHeight")
        finally:
            page.size(390, 844)

    def test_a_long_word_can_be_forgotten(self, page):
        send(page, "z" * 200)
        page.tap("#learned-open")
        page.until("document.querySelectorAll('.words li').length === 1")
        button = "document.querySelector('.words button').getBoundingClientRect()"
        assert page.run(f"{button}.right <= innerWidth && {button}.width > 30")


def test_a_book_that_is_pasted_stops_no_suggestion(page):
    """Of a long text the last words are read, for a while from the same one on."""
    length = "(text) => app.predictor.context(text).length - 1"
    lengths = page.run(f"[300, 301, 450, 451].map((n) => ({length})('ta '.repeat(n)))")
    assert lengths == [300, 151, 300, 151]
    put(page, "ta ne " * 10_000)
    settle(page)
    assert page.run("document.documentElement.classList.contains('failed')") is False
