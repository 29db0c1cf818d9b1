"""``pfl-lm population``: what a person sees, and the one line that a mistake gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfl_lm.cli import main
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.synthetic.population import synthetic_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    synthetic_tokenizer(200).save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    words = synthetic_tokenizer(200).words[4:]
    rows = [{"user": f"u{i % 20}", "text": " ".join(words[i : i + 5])} for i in range(100)]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command as a shell would; return its exit status."""
    monkeypatch.setattr("sys.argv", ["pfl-lm", "population", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_build_then_describe(
    text: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "p"
    assert run(monkeypatch, "build", text, "--tokenizer", tokenizer, "-o", out) == 0
    built = capsys.readouterr()
    assert built.err == ""  # no terminal, no progress bar
    assert run(monkeypatch, "describe", out) == 0
    shown = capsys.readouterr().out
    assert shown == built.out
    for expected in (
        "OOV rate",
        "median",
        "text.jsonl",
        PopulationStore.open(out).tokenizer_digest,
    ):
        assert expected in shown
    assert run(monkeypatch, "describe", out, "--json") == 0
    profile = json.loads(capsys.readouterr().out)
    assert sum(row["users"] for row in profile["splits"].values()) == 20
    assert sum(row["messages"] for row in profile["splits"].values()) == 100


def test_inputs_by_split(
    text: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = tmp_path / "held.jsonl"
    held_out.write_text(text.read_text().replace('": "u', '": "v'))
    arguments = ["--train", text, "--test", held_out, "--tokenizer", tokenizer]
    assert run(monkeypatch, "build", *arguments, "--output", tmp_path / "p", "--workers", 1) == 0
    store = PopulationStore.open(tmp_path / "p")
    assert [store.users(split) for split in ("train", "validation", "test")] == [20, 0, 20]


def test_public_text(
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.txt").write_text(f"{synthetic_tokenizer(200).words[9]}\n" * 3)
    arguments = [tmp_path / "a.txt", "--tokenizer", tokenizer, "--output", tmp_path / "p"]
    assert run(monkeypatch, "public-text", *arguments) == 0
    assert "public text" in capsys.readouterr().out
    assert len(PopulationStore.open(tmp_path / "p").stream("train")) == 9


def test_splits_without_users_are_said(
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    word = synthetic_tokenizer(200).words[9]
    (tmp_path / "one.jsonl").write_text(json.dumps({"user": "ann", "text": word}))
    arguments = ["--train", tmp_path / "one.jsonl", "--tokenizer", tokenizer]
    assert run(monkeypatch, "build", *arguments, "-o", tmp_path / "p") == 0
    shown = capsys.readouterr().out
    assert "no users in test: evaluation is not possible" in shown
    assert "no users in validation" in shown
    assert "no users in train" not in shown


def test_skipped_lines_are_shown(
    text: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with text.open("a") as file:
        file.write("{oops\n")
    arguments = [text, "--tokenizer", tokenizer, "--output", tmp_path / "p"]
    assert run(monkeypatch, "build", *arguments, "--max-malformed", 0.01) == 0
    captured = capsys.readouterr()
    assert "text.jsonl:101: " in captured.err
    assert "1 malformed record" in captured.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no input"),
        (["gone.jsonl"], "gone.jsonl does not exist"),
        (["text.doc"], "cannot tell the format"),
        (["bad.jsonl"], "bad.jsonl:2: "),
        (["cut.jsonl.gz"], "damaged or ends early"),
        (["table.csv"], "no column 'user'"),
        (["leaf.json"], "not a LEAF file"),
        (["empty.jsonl"], "no message with a word"),
        (["text.jsonl", "--split", "0.8,0.2"], "three numbers"),
        (["text.jsonl", "--split", "0.8,0.1,0.2"], "sum to 1"),
        (["text.jsonl", "--max-malformed", "2"], "--max-malformed"),
        (["text.jsonl", "--max-malformed", "nan"], "--max-malformed"),
        (["text.jsonl", "--split", "nan,0.1,0.2"], "sum to 1"),
        (["text.jsonl", "text.jsonl"], "named twice"),
        (["text.jsonl", "empty.jsonl"], "empty.jsonl holds no record"),
        (["text.jsonl", "empty.jsonl.gz"], "it is empty"),
        (["open.csv"], "open.csv:3: a quoted field does not end on its line"),
        (["text.jsonl", "--workers", "0"], "workers"),
        (["--train", "text.jsonl", "--test", "text.jsonl"], "belongs to one split"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str],
    said: str,
    text: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.doc").touch()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "bad.jsonl").write_text(text.read_text().splitlines()[0] + "\n{\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08 and no more")
    (tmp_path / "empty.jsonl.gz").touch()
    (tmp_path / "open.csv").write_text('user,text\na,b\nc,"d\n' + "e,f\n" * 20)
    (tmp_path / "table.csv").write_text("author,text\na,b\n")
    (tmp_path / "leaf.json").write_text('{"user": "a", "text": "b"}')
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    status = run(monkeypatch, "build", *arguments, "--tokenizer", tokenizer, "--output", "p")
    errors = capsys.readouterr().err
    assert status == 2
    assert said in errors
    assert errors.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_without_tokenizer_is_refused(
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "build", text, "--tokenizer", tmp_path, "--output", tmp_path / "p") == 2
    assert "holds no tokenizer" in capsys.readouterr().err


def test_describe_refuses_a_folder_without_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "describe", tmp_path) == 2
    assert "holds no population" in capsys.readouterr().err
