"""The page's advice: said where the figures call for it, and only there."""

from __future__ import annotations

import json

import pytest

from pfl_lm.report.advice import advice
from pfl_lm.report.page import write_report
from pfl_lm.report.source import read_run
from pfl_lm.run.folder import RunFolder


@pytest.fixture
def advised(make_run):
    """A function that returns the advice of a run whose rounds were changed."""

    def build(evaluations: list[float] | None = None, **figures: float):
        folder = make_run()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        seen = iter(evaluations or [])
        for line in lines:
            if line["kind"] == "round":
                line |= figures
            elif evaluations is not None:
                line["perplexity"] = next(seen, None)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        return folder, advice(read_run(RunFolder.open(folder)))

    return build


SOUND = {"clipped_share": 0.5, "update_norm": 0.8, "mean_norm": 0.3, "noise_norm": 0.1}


def test_a_sound_run_needs_none(advised):
    assert advised([100.0, 90.0, 89.0], **SOUND)[1] == []


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({"clipped_share": 1.0, "update_norm": 99.0}, "100% of the updates were clipped"),
        ({"clipped_share": 1.0, "update_norm": 99.0}, "raise clip_norm"),
        ({"clipped_share": 0.0, "update_norm": 0.001}, "lower clip_norm"),
        ({"clipped_share": 0.0, "update_norm": 0.001}, "or raise training.learning_rate"),
        (
            {"clipped_share": 1.0, "update_norm": None},
            "their norms were not finite: lower training",
        ),
        ({"mean_norm": None}, "rounds opened no sum, because too few devices reported"),
        ({"noise_norm": 0.299}, "far louder than what the devices have in common (0.0245)"),
    ],
)
def test_figures_name_the_setting_to_turn(advised, figures, told):
    folder, lines = advised([100.0, 90.0, 89.0], **SOUND | figures)
    assert len(lines) == 1
    assert told in lines[0]
    page = write_report(folder).read_text(encoding="utf-8")
    assert "What to try next" in page


def test_a_run_that_clips_every_update_on_purpose_is_not_told_to_stop(advised):
    bound = 1.0  # of the fixture's scenario
    figures = SOUND | {"clipped_share": 1.0, "update_norm": 3 * bound}
    assert advised([100.0, 90.0, 89.0], **figures)[1] == []


@pytest.mark.parametrize(
    ("evaluations", "told"),
    [([100.0, 90.0, 80.0], "run more rounds"), ([100.0, 80.0, 90.0], "run fewer rounds")],
)
def test_the_curve_says_how_many_rounds(advised, evaluations, told):
    _, lines = advised(evaluations, **SOUND)
    assert len(lines) == 1
    assert told in lines[0]


def test_without_noise_a_loose_bound_costs_nothing(advised):
    figures = SOUND | {"clipped_share": 0.0, "update_norm": 0.001, "noise_norm": 0.0}
    assert advised([100.0, 90.0, 89.0], **figures)[1] == []


def test_a_clip_norm_that_follows_the_updates_is_shown_and_not_advised_on(advised):
    folder, _ = advised([100.0, 90.0, 89.0], **SOUND | {"clipped_share": 1.0, "clip_norm": 0.37})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["policy"]["clipping"] = {"lowest": 0.01, "highest": 10.0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run = read_run(RunFolder.open(folder))
    assert not any("raise clip_norm" in line for line in advice(run))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "clip norm, last round" in page
    assert "0.37" in page
