"""`pfl-lm prepare`: one command from messages to recipes that a run takes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from pfl_lm.cli import main
from pfl_lm.project.prepare import Preparation, prepare
from pfl_lm.recipes import load
from pfl_lm.run.pretrain_recipe import Pretraining
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.setup import open_run
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.text.tokenizer_build import build_tokenizer
from pfl_lm.text.tokenizer_recipe import TokenizerRecipe

SENTENCES = (
    "the dog is in the garden and i will be late for dinner tonight",
    "what do you think about the new house that they have found",
    "can we go to the beach on sunday if it is not raining again",
)


def small(inputs, public=(), **fields):
    """Return what a person wants, with a vocabulary that is quickly built."""
    return Preparation(inputs, public, size=10_000, **fields)


@pytest.fixture
def messages(tmp_path):
    rows = [{"who": f"u{n % 60}", "said": f"{SENTENCES[n % 3]} {n}"} for n in range(240)]
    path = tmp_path / "messages.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "public.txt").write_text("\n".join(SENTENCES * 20), encoding="utf-8")
    return path


def test_a_folder_that_a_run_opens(messages, tmp_path):
    said: list[str] = []
    asked = Preparation([messages], [tmp_path / "public.txt"], user_field="who", text_field="said")
    prepare(asked, tmp_path / "mine", said.append)
    told = "\n".join(said)
    assert "capitals: none; public.txt does not tell" in told
    for part in ("text: 60 users, 240 messages", "odd: 60 users: too few", "vocabulary: 30,000",
                 "population: users split by", "a first model, which reads it 5"):  # fmt: skip
        assert part in told
    people = PopulationStore.open(tmp_path / "mine" / "people")
    assert sum(people.users(split) for split in ("train", "validation", "test")) == 60
    pretraining = load(Pretraining, tmp_path / "mine" / "pretraining.toml")
    assert pretraining.model.vocabulary_size == 30_000
    assert pretraining.epochs == 5  # of 60 lines, as many passes as there may be
    scenario = load(Scenario, tmp_path / "mine" / "scenario.toml", {"start": None})
    context = open_run(scenario)
    assert context.public is not None
    assert scenario.cohort == people.users("train") // 4
    training = scenario.training
    assert (scenario.rounds, training.max_tokens, training.loss) == (100, 400, "softmax")
    assert context.privacy.policy is not None
    assert scenario.rounds == context.privacy.policy.rounds  # their ε is paid for all the same


def test_the_users_text_is_no_public_text(messages, tmp_path):
    said: list[str] = []

    def refused(public, match):
        asked = small([messages], public, user_field="who", text_field="said")
        with pytest.raises(ValueError, match=match):
            prepare(asked, tmp_path / "mine", said.append)
        assert not (tmp_path / "mine").exists()

    refused([messages], "--public .*: this is the users' text of")
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(messages.read_bytes())
    refused([copy], "this is the users' text of")
    rows = messages.read_text(encoding="utf-8").splitlines()
    copy.write_text("\n".join(rows[:100]), encoding="utf-8")  # a part of it, under another name
    refused([copy], "the public text is the users' own: 100% of its messages")
    assert any(line.startswith("odd: copy.jsonl has a field 'who'") for line in said)


def test_words_are_shown_as_public_text_writes_them(messages, tmp_path):
    (tmp_path / "public.txt").write_text("We go to London on Sunday\n" * 20, encoding="utf-8")
    said: list[str] = []
    asked = small([messages], [tmp_path / "public.txt"], user_field="who", text_field="said")
    prepare(asked, tmp_path / "deep" / "mine", said.append)
    folder = tmp_path / "deep" / "mine"
    forms = Tokenizer.open(folder / "tokenizer").forms
    assert forms == {"london": "London", "sunday": "Sunday"}
    assert "capitals: 2 words are shown as public.txt writes them" in said
    again = build_tokenizer(load(TokenizerRecipe, folder / "tokenizer.toml"), tmp_path / "again")
    assert again.forms == forms


def test_a_failure_leaves_nothing(messages, tmp_path):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="user"):
        prepare(small([messages]), tmp_path / "mine", lambda line: None)
    assert sorted(tmp_path.iterdir()) == before


def test_the_verb_says_what_comes_next(messages, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "prepare",
        "messages.jsonl",
        "-o",
        "mine",
        "--user-field",
        "who",
        "--text-field",
        "said",
    ]
    monkeypatch.setattr(sys, "argv", ["pfl-lm", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "pfl-lm simulate mine/scenario.toml -o runs/mine" in shown
    assert "public text: none" in shown


def few(tmp_path, count):
    rows = [{"user": f"u{n}", "text": SENTENCES[n % 3]} for n in range(count)] * 3
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return small([path])


def test_recipes_for_few_users_can_run(tmp_path):
    prepare(few(tmp_path, 8), tmp_path / "mine", lambda line: None)  # 4 of them for training
    assert load(Scenario, tmp_path / "mine" / "scenario.toml").cohort == 3


def test_too_few_users_in_a_split_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 users for train, 3 or more are needed"):
        prepare(few(tmp_path, 3), tmp_path / "mine", lambda line: None)
    assert not (tmp_path / "mine").exists()


def test_public_text_without_a_message_is_named(messages, tmp_path):
    (tmp_path / "public.txt").write_text("\n", encoding="utf-8")
    asked = small([messages], [tmp_path / "public.txt"], user_field="who", text_field="said")
    with pytest.raises(ValueError, match=r"public\.txt"):
        prepare(asked, tmp_path / "mine", lambda line: None)


def test_commands_that_are_printed_can_be_pasted(messages, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["prepare", str(messages), "-o", "my people", "--user-field", "who"]
    monkeypatch.setattr(sys, "argv", ["pfl-lm", *words, "--text-field", "said"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "pfl-lm simulate 'my people/scenario.toml' -o 'runs/my people'" in said


def test_malformed_text_is_refused_before_anything_is_built(messages, tmp_path):
    path, said = tmp_path / "tweets.csv", list[str]()
    path.write_text("user,text\n" + 'u1,"two\nlines"\n' * 50, encoding="utf-8")
    with pytest.raises(ValueError, match="write text with line ends as JSONL or Parquet"):
        prepare(small([path]), tmp_path / "mine", said.append)
    assert not any(line.startswith("vocabulary") for line in said)


def test_malformed_records_can_be_allowed(messages, tmp_path):
    with messages.open("a", encoding="utf-8") as file:
        file.write('{"who": "[deleted]", "said": "nobody knows who wrote this"}\n')
    asked = small([messages], user_field="who", text_field="said")
    with pytest.raises(ValueError, match="'\\[deleted\\]' stands for a missing id"):
        prepare(asked, tmp_path / "mine", lambda line: None)
    counted = prepare(replace(asked, max_malformed=0.01), tmp_path / "mine", lambda line: None)
    assert (counted.users, counted.malformed) == (60, 1)
