"""The page's choice of the languages that its owner writes: words leave, are learnt, and return."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pfl_lm.export.bundle import TOKENIZER, opened
from pfl_lm.keyboard.site import Site
from pfl_lm.text.tokenizer import VOCABULARY_FILE
from pfl_lm.translations import Language

READY = "window.app && document.documentElement.classList.contains('ready') && !app.working"
CHOICE = "document.querySelectorAll('[name=settings-languages]')"


@dataclass(frozen=True)
class OfTwoLanguages(Site):
    """A site whose vocabulary says of each word whose it is."""

    table: Path | None = None

    def files(self) -> dict[str, Path]:
        assert self.table is not None
        return {**super().files(), f"bundle/{TOKENIZER}/{VOCABULARY_FILE}": self.table}


@pytest.fixture
def page(browser, serving, bundle_folder, tmp_path):
    with opened(bundle_folder) as bundle:
        head, *rows = (bundle.path(TOKENIZER) / VOCABULARY_FILE).read_text().splitlines()
        told = [f"{row}\t{('en_US', 'es_ES', '')[at % 3]}" if "\tword\t" in row else f"{row}\t"
                for at, row in enumerate(rows)]  # fmt: skip
        (tmp_path / "table.tsv").write_text("\n".join([f"{head}\tonly_of", *told, ""]))
        predict = Site.of(bundle, "fp32", server=True).predict
        site = OfTwoLanguages(bundle, predict, False, table=tmp_path / "table.tsv",
                              written=("es_ES",))  # fmt: skip
        browser.open(serving(site))
        browser.until(READY)
        yield browser
        browser.run("localStorage.clear()")


def test_the_owner_chooses_and_the_page_remembers(page):
    assert page.run("app.written") == ["es_ES"], "as the verb was told"
    word = page.run("app.tokenizer.words[[...app.tokenizer.leftOut][5]]")
    page.run(f"app.text.value = {word!r}; app.send().then(() => 1)")
    page.until(f"{READY} && app.personal.messages.length === 1")
    assert page.run("app.personal.newWords()") == [{"word": word, "count": 1}]
    page.run("app.corrector.accept('hwo'); app.settings.open(); 1")
    said = page.run(f"[...{CHOICE}].map((one) => one.parentElement.textContent.trim())")
    assert said == ["English and español", "English", "español"]
    legend = page.run(f"{CHOICE}[0].closest('fieldset').querySelector('legend').textContent")
    assert legend == Language.of("en").text("settings.languages")
    page.run(f"{CHOICE}[0].click(); document.getElementById('settings').close()")
    page.until(f"{READY} && app.tokenizer.leftOut.size === 0")
    assert page.run("[app.personal.newWords().length, app.corrector.accepted.has('hwo'),"
                    f"app.corrector.words.includes({word!r})]") == [0, True, True]  # fmt: skip
    page.run("window.earlier = true; location.reload(); 1")
    page.until(f"!window.earlier && {READY} && app.written.length === 2")
    page.run("app.settings.open(); 1")
    assert page.run(f"{CHOICE}[0].checked")
