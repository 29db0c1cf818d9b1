"""The page in every language of the catalogue, and in one that nobody speaks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from pfl_lm.export.bundle import opened
from pfl_lm.keyboard.site import Site
from pfl_lm.translations import FOLDER, Language, languages

READY = "document.documentElement.classList.contains('ready') && !app.working"
POLICY = {"costs": [0.5, 0.8, 1.0], "participations": 2, "epsilon": 1.0, "delta": 1e-6}
TASK = {
    "policy": {**POLICY, "unit": "user", "trust_days": 30},
    "rounds": 1200,
    "round": {"dim": 140_000, "min_reports": 1000},
    "grid": {"clip_norm": 0.5},
    "upload_bytes": 1_234_567,
    "noise_multiplier": 0.71,
    "statement": "The statement as it was published.",
    "trial": False,
}
PART = (
    "import('./part_sheet.js').then(({ PartSheet }) => new PartSheet({ task: %s, on: %s, key: {},"
    " personal: app.personal, rounds: [], record: { participations: [{}], epsilon: 0.5 },"
    " state: 'off', text: '' }).open()).then(() => 1)"
)
# What is read, but for what the owner types, the model's words and what stays in English.
OUTSIDE = (
    ".bar, .keys .key, .bubble, bdi, p[lang=en], [hidden], #title, #learned-count, script,"
    ".layouts label"
)
SAID = f"""(() => {{
  const found = [], own = (one) => one.closest("{OUTSIDE}");
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode())
    if (!own(walker.currentNode.parentElement)) found.push(walker.currentNode.data);
  for (const name of ["aria-label", "placeholder", "title"])
    for (const one of document.querySelectorAll(`[${{name}}]`))
      if (!one.matches(".key") || one.dataset.key.length > 1) found.push(one.getAttribute(name));
  return found.filter((text) => /\\p{{L}}/u.test(text));
}})()"""


@dataclass(frozen=True)
class Translated(Site):
    """A site with one more language."""

    more: Path | None = None

    def files(self) -> dict[str, Path]:
        return {**super().files(), **({"languages/en.json": self.more} if self.more else {})}


@pytest.fixture(scope="module")
def address(browser, serving, bundle_folder):
    with opened(bundle_folder) as bundle:
        yield serving(Site.of(bundle, "fp32", server=True))


def read(browser, address: str, *tags: str) -> None:
    browser.reads(*tags)
    browser.open("about:blank")
    browser.open(address)
    browser.until(f"window.app && {READY}")


def send(browser, text: str) -> None:
    browser.run(f"app.text.value = {text!r}; app.send().then(() => 1)")
    browser.until(READY)


@pytest.mark.parametrize("code", languages())
def test_the_page_speaks_its_readers_language(browser, address, code):
    """All of it fits at a phone's width, and says what Python says by the same catalogue."""
    language = Language.of(code)
    read(browser, address, f"{code}-419" if code == "es" else code, "en")
    root = "document.documentElement"
    assert browser.run(f"[{root}.lang.slice(0, 2), {root}.dir, document.title]") == [
        code, language.direction, language.text("page.title"),
    ]  # fmt: skip
    for text in ("zorblax", "zorblax zorblax"):
        send(browser, text)
    browser.tap("#learned-open")
    browser.until("document.querySelectorAll('.words li').length === 1")
    note = browser.run("document.getElementById('learned-note').textContent")
    assert note == language.text("learned.note", count=2)
    said = [browser.run(PART % (json.dumps(TASK), "true")) and browser.run(SAID)]
    browser.run("document.querySelectorAll('dialog').forEach((one) => one.close())")
    browser.tap("#about-open")
    browser.run("app.settings.open(); 1")
    said += [browser.run(SAID)]
    assert browser.run(f"{root}.scrollWidth") == 390
    wide = "(one) => one.scrollWidth > one.clientWidth + 1 && one.clientWidth"
    assert (
        browser.run(f"[...document.querySelectorAll('.sheet, .actions')].filter({wide}).length")
        == 0
    )
    assert language.text("settings.numberRow") in [text.strip() for text in said[1]]
    assert any("ε" in text for text in said[0])
    assert not [text for text in said[0] + said[1] if "undefined" in text or "{{" in text]


def test_a_language_that_is_not_there_leaves_the_vocabularys_then_english(browser, address):
    read(browser, address, "fr-FR")
    assert browser.run("document.documentElement.lang") in ("en", "en-US")


def test_a_stated_language_comes_before_the_browsers(browser, serving, bundle_folder):
    with opened(bundle_folder) as bundle:
        read(browser, serving(Site.of(bundle, "fp32", True, "ar")), "en")
        assert browser.run("document.documentElement.dir") == "rtl"


def test_everything_that_is_read_comes_from_the_catalogue(
    browser, serving, bundle_folder, tmp_path
):
    """In a language whose every text is marked, what is not marked was not translated."""
    content = json.loads((FOLDER / "en.json").read_text(encoding="utf-8"))
    marked = {
        group: {key: text if group == "language" else f"⟦{text}" for key, text in own.items()}
        for group, own in content.items()
    }
    (tmp_path / "en.json").write_text(json.dumps(marked), encoding="utf-8")
    with opened(bundle_folder) as bundle:
        predict = Site.of(bundle, "fp32", True).predict
        site = Translated(bundle, predict, False, language="en", more=tmp_path / "en.json")
        read(browser, serving(site), "en")
    said = browser.run(SAID)
    for modes in (["numbers"], ["emoji"], ["letters", "shift", "shift"]):
        browser.run(f"app.emoji.use('🙂'); {modes}.forEach((mode) => app.keys.act(mode)); 1")
        said += browser.run(SAID)
    send(browser, "zorblax zorblax")
    send(browser, "zorblax zorblax")
    browser.tap("#learned-open")
    browser.until("document.querySelectorAll('.words li').length === 1")
    browser.run("app.sheets.about(); app.settings.open(); 1")
    for on, trial in (("true", "false"), ("false", "true")):
        task = json.dumps({**TASK, "trial": json.loads(trial)})
        browser.run("document.querySelectorAll('dialog').forEach((one) => one.close())")
        browser.run(PART % (task, on))
        said += browser.run(SAID)
    assert len(said) > 100
    units = re.compile(r"[\d.,]+ (ms|kB|MB)")  # the browser's own
    assert [text for text in said if "⟦" not in text and not units.fullmatch(text)] == []
    browser.reads("en-US")
