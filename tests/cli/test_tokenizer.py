"""``pfl-lm tokenizer``: what a person sees, and the one line that a mistake gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfl_lm.cli import main
from pfl_lm.text.synthetic.population import synthetic_words
from pfl_lm.text.tokenizer_recipe import CONFESSION

RECIPE = """
locale = "en_US"
size   = 10_000

[source]
kind       = "word_list"
path       = "words.tsv"
provenance = "invented for a test"
licence    = "CC0-1.0"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    words = ["hello", *synthetic_words(10_500)]
    lines = [f"{word}\t{20_000 - rank}" for rank, word in enumerate(words)]
    (tmp_path / "words.tsv").write_text("\n".join(["word\tcount", *lines]))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command as a shell would; return its exit status."""
    monkeypatch.setattr("sys.argv", ["pfl-lm", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_build_then_describe(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "tokenizer", "build", recipe, "--output", tmp_path / "t") == 0
    assert "10,000" in capsys.readouterr().out
    text = "Hello zzqx 12"
    assert run(monkeypatch, "tokenizer", "describe", tmp_path / "t", "--text", text) == 0
    shown = capsys.readouterr().out
    for expected in ("invented for a test", "CC0-1.0", "hello <unk> <number>", "digest"):
        assert expected in shown


def test_unknown_words_are_measured_on_text(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "tokenizer", "build", recipe, "--output", tmp_path / "t") == 0
    assert "of the list's words" in capsys.readouterr().out
    (tmp_path / "text.txt").write_text("hello zzqx, 12\n\nHello hello\n")
    measure = ["--measure", tmp_path / "text.txt"]
    assert run(monkeypatch, "tokenizer", "describe", tmp_path / "t", *measure) == 0
    assert "20.00% of the 5 words of" in capsys.readouterr().out
    (tmp_path / "text.txt").write_text("\n")
    assert run(monkeypatch, "tokenizer", "describe", tmp_path / "t", *measure) == 2
    assert "holds no word to measure on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('licence    = "CC0-1.0"', ""), "licence"),
        (('licence    = "CC0-1.0"', 'licence = ""'), "licence"),
        (('provenance = "invented for a test"', ""), "provenance"),
        (('kind       = "word_list"', 'kind = "private_text"'), CONFESSION),
        (('kind       = "word_list"', 'kind = "the web"'), "kind"),
        (("size   = 10_000", "size = 5"), "1,000 to 200,000"),
        (("size   = 10_000", 'size = "10000"'), "whole number"),
        (("size   = 10_000", "size = 150_000"), "usable words"),
        (("size   =", "sice ="), "did you mean 'size'"),
        (("words.tsv", "gone.tsv"), "gone.tsv does not exist"),
        (('locale = "en_US"', 'locale = "English"'), "locale"),
        (('locale = "en_US"', 'locale = "zh_CN"'), "spaces do not part the words"),
        (("[source]", "[source"), "not valid TOML"),
    ],
)
def test_a_mistake_in_the_recipe_is_one_line(
    change: tuple[str, str],
    said: str,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pfl_lm.cli.tokenizer._PATIENCE", 600.0)  # a busy machine says its steps
    recipe.write_text(RECIPE.replace(*change))
    assert run(monkeypatch, "tokenizer", "build", recipe, "--output", tmp_path / "t") == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("locale", ["ja_JP", "zh_CN", "th_TH"])
def test_a_language_without_spaces_is_refused_by_its_name(
    locale: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No recipe of it ships; the nearest name of another language would not help."""
    assert run(monkeypatch, "tokenizer", "build", f"locales/{locale}", "-o", tmp_path / "t") == 2
    assert f"{locale!r}: spaces do not part the words" in capsys.readouterr().err


def test_describe_refuses_a_folder_without_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "tokenizer", "describe", tmp_path) == 2
    assert "holds no tokenizer" in capsys.readouterr().err
