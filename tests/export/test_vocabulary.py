"""The block list: a listed word in any form of its letters, and what is no word, is blocked."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfl_lm.export.vocabulary import BlockList
from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.tokenizer import CONTROLS, Tokenizer
from pfl_lm.text.tokenizer_assemble import assemble

WORDS = ["darn", "Darn", "DARN", "dárn", "d4rn", "dаrn", "Darned", "naïve", "naive", "the"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    rows = [(name, "control", 1) for name in CONTROLS]
    rows += [("<number>", "placeholder", 1), (".", "mark", 9), ("👍🏽", "mark", 9)]
    rows += [(word, "word", 1) for word in WORDS]
    rules = Normalisation("natural", "keep")
    return assemble(rows, rules, {"provenance": "x", "licence": "y"})


def read(tokenizer: Tokenizer, tmp_path: Path, content: bytes) -> BlockList:
    path = tmp_path / "block.txt"
    path.write_bytes(content)
    return BlockList.read(path, tokenizer)


def test_every_form_of_the_letters_is_blocked(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for listed in ("darn", "DARN", "dArn\r\n", "\ufeffdarn\n", "ｄａｒｎ"):
        blocked = read(tokenizer, tmp_path, listed.encode())
        assert set(blocked.words) == set(WORDS[:6])
        allowed = [w for id, w in enumerate(tokenizer.words) if id not in blocked.ids]
        assert allowed == WORDS[6:]


@pytest.mark.parametrize("listed", ["darn!", "#darn", '"darn"', " darn;", "(Darn)", "@darn."])
def test_marks_around_a_listed_word_do_not_hide_it(
    listed: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert set(read(tokenizer, tmp_path, listed.encode()).words) == set(WORDS[:6])


def test_without_a_list_words_alone_may_be_suggested(tokenizer: Tokenizer) -> None:
    blocked = BlockList.read(None, tokenizer)
    assert [w for id, w in enumerate(tokenizer.words) if id not in blocked.ids] == WORDS
    assert blocked.listed == blocked.words == ()


@pytest.mark.parametrize("listed", ["👍", "👍🏽", "👍🏿"])
def test_an_emoji_may_be_shown_unless_a_variant_is_listed(
    listed: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert BlockList.read(None, tokenizer).emoji_ids == (tokenizer.words.index("👍🏽"),)
    assert read(tokenizer, tmp_path, listed.encode()).emoji_ids == ()
    assert read(tokenizer, tmp_path, "darn\n👎".encode()).emoji_ids != ()


def test_words_outside_the_vocabulary_stay_listed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    blocked = read(tokenizer, tmp_path, b"darn\nsupercalifrag\nkick the bucket\n")
    assert blocked.listed == ("darn", "kick the bucket", "supercalifrag")
    assert blocked.phrases == ("kick the bucket",)
    assert "the" not in blocked.words
    assert blocked.text == "darn\nkick the bucket\nsupercalifrag\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it holds no word"),
        (b"\n \n", "it holds no word"),
        ("darn".encode("utf-16"), r"block\.txt: it is UTF-16"),
        (b"d\xe4rn", r"block\.txt: not UTF-8"),
        (b"zzqx\n", "none of its words"),
        ("\n".join(WORDS).encode(), "blocks every word"),
    ],
)
def test_a_list_that_cannot_be_meant(
    content: bytes, said: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        read(tokenizer, tmp_path, content)


def test_no_such_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        BlockList.read(tmp_path / "gone.txt", tokenizer)
