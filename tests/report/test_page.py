"""The page: everything a finished run has, and whatever a going run has so far."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from pfl_lm.report import headline
from pfl_lm.report.page import write_report
from pfl_lm.run.folder import digest_of
from tests.audit.doctoring import rewrite_ledger


class Checker(HTMLParser):
    """Collects what a page would fetch, and checks that elements close in order."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.fetched += [found[key] for key in ("src", "href") if key in found]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(path):
    page = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert not checker.fetched
    assert "url(" not in page
    assert "@import" not in page
    return page


def edit(run, change):
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_finished_run(make_run):
    run = make_run(rounds=400)
    page = read(write_report(run))
    assert (run / "report.html").stat().st_size < 500_000
    expected = (
        "ε = 2.000", "10⁻⁷", "PRV (opacus 1.6)", "Nothing for this very model", "finished",
        "33.0%", "43.0%", "3.4 points more than public pretraining", "300 test users", "60.3",
        "32% lower than public pretraining", "372k (17.2%)",
    )  # fmt: skip
    for text in expected:
        assert text in page, text
    assert page.count("<svg") == 9
    assert re.search(r'<p class="hash">[0-9a-f]{64}</p>', page)
    assert not [p.name for p in run.iterdir() if p.name.startswith(".")]


def test_a_going_run(make_run):
    page = read(write_report(make_run(rounds=20, finished=False)))
    assert "round 20 of 60" in page
    assert "300 validation users" in page
    assert "All figures" not in page


def test_a_run_before_its_first_evaluation(make_run):
    page = read(write_report(make_run(rounds=5, finished=False, evaluated=False)))
    assert "Nothing has been evaluated yet" in page
    assert page.count("<svg") == 4


def test_a_run_before_its_first_round(make_run):
    run = make_run(rounds=0, finished=False)
    (run / "metrics.jsonl").unlink()
    (run / "ledger.jsonl").unlink()
    page = read(write_report(run))
    assert "<svg" not in page
    assert "What the policy guarantees" in page


def test_a_run_without_privacy_promises_nothing(make_run):
    run = make_run()

    def strip(manifest):
        manifest |= {"policy": None, "guarantee": None}
        manifest["statements"] = {
            "guaranteed": "Nothing: this run has no privacy policy (ε = ∞).",
            "simulated": "Federated training without differential privacy.",
        }

    edit(run, strip)
    page = read(write_report(run))
    assert "Not guaranteed" in page
    assert "ε = ∞" in page
    assert "Guaranteed</h2>" not in page
    assert "What the policy guarantees" not in page


@pytest.mark.parametrize("kind", ["store", "synthetic"])
def test_a_page_of_peoples_text_says_that_no_epsilon_covers_its_figures(make_run, kind):
    folder = make_run()
    path = folder / "manifest.json"
    written = json.loads(path.read_text())
    written["scenario"]["population"]["kind"] = kind
    path.write_text(json.dumps(written))
    told = "no ε covers them" in write_report(folder).read_text()
    assert told == (kind == "store")


def test_a_deployment_states_its_guarantee_first(make_run):
    run = make_run()

    def deploy(manifest):
        sentence = manifest["guarantee"]["statement"]
        manifest["statements"] = {"guaranteed": sentence, "simulated": "Only the transport."}

    edit(run, deploy)
    page = read(write_report(run))
    assert "<h2>Guaranteed</h2>" in page
    assert "Only the transport." in page


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda manifest: manifest.clear(), "is damaged: it states no format"),
        (lambda manifest: manifest.update(format=0), "has format 0"),
        (
            lambda manifest: manifest.pop("noise"),
            "of another version: noise: Field req",
        ),
        (
            lambda manifest: manifest["scenario"].update(rounds="many"),
            r"scenario.rounds: .*integer",
        ),
        (lambda manifest: manifest.update(population=7), "population: "),
    ],
)
def test_a_damaged_or_old_manifest_is_one_clear_line(make_run, change, told):
    run = make_run(finished=False)
    edit(run, change)
    with pytest.raises(ValueError, match=told) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert str(run / "manifest.json") in str(caught.value)
    assert not (run / "report.html").exists()


def test_text_as_it_was_typed_has_columns_where_it_has_figures(make_run):
    run = make_run()
    assert "All keys saved" not in read(write_report(run))
    path = run / "evaluation.json"
    content = json.loads(path.read_text())
    for row in content["rows"]:
        row |= {"keys_saved": 0.4321, "emoji_top3": None}
    path.write_text(json.dumps(content))
    page = read(write_report(run))
    assert "<th>All keys saved</th>" in page
    assert page.count("<td>43.2%</td>") == 4
    assert "Emoji" not in page


def test_worse_than_a_baseline_is_said(make_run):
    run = make_run()
    path = run / "evaluation.json"
    content = json.loads(path.read_text())
    content["rows"][0]["top3"] = 0.2
    path.write_text(json.dumps(content))
    assert '<p class="change worse">9.6 points less than public pretraining</p>' in read(
        write_report(run)
    )


def test_a_changed_ledger_is_said(make_run):
    run = make_run()
    path = run / "ledger.jsonl"
    path.write_text(path.read_text().replace('"released":"2"', '"released":"3"'))
    page = read(write_report(run))
    assert "the chain breaks here" in page
    assert str(run) not in page


def test_a_manifest_that_the_ledger_does_not_know_is_said(make_run):
    run = make_run()
    digest = digest_of(json.loads((run / "manifest.json").read_text()))
    rewrite_ledger(run, lambda entries: entries[0].update(manifest_digest=digest))
    assert "the manifest was changed" not in read(write_report(run))
    edit(run, lambda manifest: manifest["guarantee"].update(epsilon=0.5))
    assert "the manifest was changed; do not trust this page" in read(write_report(run))


def test_text_from_a_run_is_escaped(make_run):
    run = make_run()
    edit(run, lambda manifest: manifest["scenario"].update(description="<img src=x onerror=1>"))
    assert "<img" not in read(write_report(run))


def test_a_diverged_run_has_a_page(make_run):
    run = make_run()
    line = {"kind": "round", "round": 60, "loss": float("nan"), "noise_norm": float("inf")}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    path = run / "evaluation.json"
    content = json.loads(path.read_text())
    content["rows"][0] |= {"perplexity": None, "over_users": None}
    path.write_text(json.dumps(content))
    read(write_report(run))


def test_what_is_no_run_is_refused(tmp_path, make_run):
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        write_report(tmp_path)
    run = make_run()
    (run / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("value", "says", "better"),
    [
        (0.5001, "the same as public bigram", True),
        (0.4999, "the same as public bigram", True),
        (0.48, "2.0 points less than public bigram", False),
        (0.52, "2.0 points more than public bigram", True),
    ],
)
def test_a_difference_that_rounds_to_nothing_is_none(value, says, better):
    rows = [{"name": "public bigram", "top3": 0.5}]
    assert headline._change("top3", value, rows, higher=True) == (says, better)


def test_what_diverged_is_called_infinite(make_run):
    run = make_run()
    path = run / "evaluation.json"
    content = json.loads(path.read_text())
    content["rows"][0] |= {"perplexity": None, "perplexity_known": None}
    path.write_text(json.dumps(content))
    page = read(write_report(run))
    assert '<p class="value">∞</p>' in page
    assert "worse than public pretraining: the training diverged" in page
    assert page.count("<td>∞</td>") == 2


def test_a_huge_figure_stays_short():
    rows = [{"name": "public bigram", "perplexity": 250.0}]
    says, better = headline._change("perplexity", 1e200, rows, higher=False)
    assert (says, better) == ("4 × 10¹⁹⁹% higher than public bigram", False)


def test_no_bar_leaves_its_tile(make_run):
    run = make_run()
    path = run / "evaluation.json"
    content = json.loads(path.read_text())
    for place, row in enumerate(content["rows"]):
        row["keystrokes_saved"] = -0.2 * (place + 1)
    path.write_text(json.dumps(content))
    widths = re.findall(r'style="width:([-\d.]+)%"', read(write_report(run)))
    assert all(0 <= float(width) <= 100 for width in widths)


def test_one_round_is_one(make_run):
    assert "trained in 1 round of 100" in read(write_report(make_run(rounds=1)))


def test_a_name_in_another_script_has_its_own_direction(make_run):
    run = make_run()
    edit(run, lambda manifest: manifest["scenario"].update(description="مستخدمون مخترعون"))
    assert '<h1 dir="auto">مستخدمون مخترعون</h1>' in read(write_report(run))
