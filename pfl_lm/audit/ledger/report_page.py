"""Does the page that people look at say what the run's files do? It is written again, and compared.

Statements, ε and the ledger's head are looked for in every page. The whole of it is compared where
the run has ended and was made by the code that is installed here.
"""

from __future__ import annotations

import html
import re
from itertools import zip_longest

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.chain import Chain
from pfl_lm.audit.findings import Finding
from pfl_lm.report import headline
from pfl_lm.report.page import render
from pfl_lm.report.source import Run, read_run
from pfl_lm.version import code_digest

_NAME = "page of the run"
_UNSEEN = re.compile(r"<(script|style)\b.*?</\1>|<!--.*?-->|<[^>]*>", re.DOTALL)
_HEAD = re.compile(r'<p class="hash">([0-9a-f]{64})</p>')


def report_page(artifacts: RunArtifacts, chain: Chain) -> list[Finding]:
    """Check what a run's own page shows; [] where there is none."""
    path = artifacts.folder.report_path
    if not path.is_file():
        return []
    page, run = path.read_text(encoding="utf-8", errors="replace"), read_run(artifacts.folder)
    expected = render(run)
    if page == expected:
        return [Finding(_NAME, True, f"{path.name} is what the run's files give, to the byte.")]
    shown = _shown(page)
    if missing := next((said for said in _said(run) if said not in shown), ""):
        return [Finding(_NAME, False, f"{path.name} does not say “{missing}”.")]
    heads = _HEAD.findall(page)
    if len(heads) != 1 or heads[0] not in chain.hashes:
        return [Finding(_NAME, False, f"{path.name} shows no head that is in this ledger.")]
    again = "write it again (pfl-lm report), and compare."
    if heads[0] != chain.hashes[-1] or chain.entries[-1].get("kind") != "end":
        text = f"{path.name} was written before the run ended: {again}"
        return [Finding(_NAME, None, text)]
    if artifacts.manifest.get("versions", {}).get("code") != code_digest():
        text = f"{path.name} was written by other code than is installed here: {again}"
        return [Finding(_NAME, None, text)]
    text = f"{path.name} differs from the run's files: {_where(page, expected)}"
    return [Finding(_NAME, False, text)]


def _said(run: Run) -> list[str]:
    """Return what the first screen of a page must say of privacy."""
    guarantee = headline.guarantee(run)
    said = ["ε = " + guarantee["epsilon"], guarantee["sentence"], guarantee["aside"]]
    return [" ".join(str(text).split()) for text in said]


def _shown(page: str) -> str:
    """Return a page's text as a reader sees it, on one line."""
    return " ".join(html.unescape(_UNSEEN.sub(" ", page)).split())


def _where(page: str, expected_page: str) -> str:
    """Say where a page first shows other words than it should."""
    words = zip_longest(_shown(page).split(), _shown(expected_page).split(), fillvalue="")
    before: list[str] = []
    for told, expected in words:
        if told != expected:
            return f"“{' '.join([*before[-5:], told])}”, where they have “{expected}”."
        before.append(told)
    return "what it shows is hidden, or drawn otherwise."
