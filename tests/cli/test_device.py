"""`pfl-lm device cost`: what a person reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pfl_lm.cli.device import app
from pfl_lm.run.training_methods import TRAINING_METHODS

SCENARIO = Path(__file__).resolve().parents[2] / "simulations" / "chat_partial.toml"


def printed(*arguments: str, columns: int = 80) -> str:
    found = CliRunner().invoke(
        app, ["cost", str(SCENARIO), *arguments], env={"COLUMNS": str(columns)}
    )
    assert found.exit_code == 0, found.output
    return found.output


def test_the_table_says_what_each_way_asks_and_whom_it_leaves_out() -> None:
    text = printed("--budget", "10")
    assert "…" not in text  # nothing is cut off at 80 columns
    for method in TRAINING_METHODS:
        assert f" {method.name} " in text
    everything = next(line for line in text.splitlines() if " everything " in line)
    assert "no room" in everything
    assert "no room" not in next(line for line in text.splitlines() if " side branch " in line)
    assert "10 MB hold: 8-bit model; 4-bit model" in text


def test_a_wide_terminal_shows_what_memory_is_made_of() -> None:
    assert "payload" in printed(columns=130)


@pytest.mark.parametrize("fleet", ["recent", "mixed", "small"])
def test_every_figure_is_there_as_json(fleet: str) -> None:
    rows = json.loads(printed("--json", "--fleet", str(SCENARIO.parent / f"fleets/{fleet}.toml")))
    assert [row["method"] for row in rows] == [
        "as it stands",
        *(method.name for method in TRAINING_METHODS),
    ]
    for row in rows:
        assert row["peak_bytes"] == sum(row[f"{p}_bytes"] for p in ("model", "payload", "work"))
        assert set(row["fits"]) == set(row["seconds"])
        assert min(row["flops"], row["download_bytes"], row["upload_bytes"]) > 0
