"""The verbs `population import` and `population export`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pfl_lm import cli
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.population_build import Input, build_population
from pfl_lm.text.records import Message
from pfl_lm.text.synthetic.population import synthetic_tokenizer


@pytest.fixture
def run(monkeypatch):
    def verb(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["pfl-lm", "population", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return verb


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    synthetic_tokenizer(200).save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def store(tmp_path) -> Path:
    words, draw = synthetic_tokenizer(200).words[4:], np.random.default_rng(0)
    lines = [Message(f"u{i % 7}", " ".join(draw.choice(words, 5))) for i in range(60)]
    build_population(
        [Input(Path("x"), records=lines)],
        synthetic_tokenizer(200),
        tmp_path / "store",
    )
    return tmp_path / "store"


def test_leaf_out_and_in(run, store, tokenizer, tmp_path, capsys):
    out, again = tmp_path / "leaf", tmp_path / "again"
    assert run("export", store, "--to", "leaf", "--tokenizer", tokenizer, "-o", out) == 0
    assert "60 messages" in capsys.readouterr().out
    assert run("import", out, "--from", "leaf", "--tokenizer", tokenizer, "-o", again) == 0
    counts = [
        sum(PopulationStore.open(folder).users(split) for split in ("train", "validation", "test"))
        for folder in (store, again)
    ]
    assert counts == [7, 7]


def test_sqlite_out(run, store, tokenizer, tmp_path):
    out = tmp_path / "clients.sqlite"
    assert run("export", store, "--to", "tff-sqlite", "--tokenizer", tokenizer, "-o", out) == 0
    assert out.read_bytes().startswith(b"SQLite format 3")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["export", "{store}", "--to", "csv"], "expected one of tff-sqlite, leaf"),
        (["import", "x", "--from", "kaggle"], "expected one of tff-stackoverflow"),
        (["import", "absent", "--from", "tff-sqlite"], "no such file"),
    ],
)
def test_a_mistake_is_one_line(run, store, tokenizer, tmp_path, capsys, arguments, reason):
    asked = [part.format(store=store) for part in arguments]
    assert run(*asked, "--tokenizer", tokenizer, "-o", tmp_path / "out") == 2
    said = capsys.readouterr().err.strip()
    assert reason in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()


def test_without_tff_it_says_what_to_run(run, tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PFL_LM_TFF_PYTHON", "/nowhere")
    out = tmp_path / "out"
    assert run("import", "--from", "tff-shakespeare", "--tokenizer", tokenizer, "-o", out) == 2
    assert "run `make tff`" in capsys.readouterr().err
