"""From messages to everything that a run needs, with sensible defaults and all choices said."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pfl_lm.files import folder_atomically, sha256_of
from pfl_lm.project.commented import commented_toml
from pfl_lm.project.templates import TEMPLATES
from pfl_lm.recipes import load
from pfl_lm.run.scenario import Scenario
from pfl_lm.secagg.config import LEAST_COHORT
from pfl_lm.text.overlap import refuse_users_text
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.population_build import BuildOptions, Input, build_population
from pfl_lm.text.population_tally import Tally
from pfl_lm.text.public_text import naming_users, public_tokens
from pfl_lm.text.readers import read_messages, text_files
from pfl_lm.text.survey import Survey, oddities, survey
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.text.tokenizer_build import NoWrittenForms, build_tokenizer
from pfl_lm.text.tokenizer_recipe import TokenizerRecipe

Say = Callable[[str], None]
_LARGE = 1000  # users, from which a larger model pays
_SIZE = 30_000  # words of a vocabulary
# What is written for any text, chosen on validation users of three corpora.
_MAX_TOKENS = 400  # of one device in a round: as many as evaluation reads of a user
_READ = 1_000_000  # words that a first model reads, in several passes over shorter public text
_MOST_PASSES = 5


@dataclass(frozen=True)
class Preparation:
    """What a person wants.

    Attributes:
        inputs: files or folders of text by user.
        public: files of public text, for the first model; may be empty.
        locale: whose public words the vocabulary has.
        size: of the vocabulary; None: 30,000.
        user_field, text_field: columns or JSON keys.
        max_malformed: share of the records that may be malformed.
    """

    inputs: Sequence[Path]
    public: Sequence[Path] = ()
    locale: str = "en_US"
    size: int | None = None
    user_field: str = "user"
    text_field: str = "text"
    max_malformed: float = BuildOptions.max_malformed


def prepare(choice: Preparation, destination: Path, say: Say) -> Survey:
    """Write a vocabulary, a population, public text and recipes; whole or not at all.

    Args:
        destination: folder to write; it must not exist.
        say: told what was found, what is odd, and what was chosen.

    Returns:
        What was counted in the text.

    Raises:
        ValueError: text that cannot be read, too few users, public text that is the users' own, or
            ``destination`` exists.
    """
    _refuse_inputs_as_public(choice)
    with folder_atomically(destination) as folder:
        counted = look(choice, say)
        for line in naming_users(choice.public, choice.user_field):
            say(f"odd: {line}")
        _refuse_unread(choice, counted)
        if counted.users < 3:
            raise ValueError(
                f"{counted.users} users: training, validation and test need one each at least; is "
                f"{choice.user_field!r} the column of the user?"
            )
        large = counted.users >= _LARGE
        size = choice.size or _SIZE
        say(
            f"vocabulary: {size:,} words of wordfreq for {choice.locale}, without punctuation and "
            "emoji (tokenizer.toml)"
        )
        tokenizer = _vocabulary(choice, size, folder, destination, say)
        options = BuildOptions(
            name=destination.name,
            user_field=choice.user_field,
            text_field=choice.text_field,
            max_malformed=choice.max_malformed,
        )
        profile = build_population(
            [Input(p) for p in choice.inputs], tokenizer, folder / "people", options
        )
        splits = profile["splits"]
        _check_splits(splits)
        passes = _public_text(choice, tokenizer, folder) if choice.public else 0
        train = splits["train"]["users"]
        for name, values in _recipes(size, counted, train, large, passes).items():
            _write(folder / name, values)
        load(Scenario, folder / "scenario.toml")
        _tell(splits, passes, say)
    return counted


def _tell(splits: Mapping[str, Any], passes: int, say: Say) -> None:
    """Say what was built and chosen."""
    held = ", ".join(f"{splits[split]['users']:,} for {split}" for split in splits)
    say(f"population: users split by a digest of their id: {held}")
    say(f"unknown words: {splits['train']['oov_rate']:.1%} of those that train users wrote")
    if passes:
        times = "once" if passes == 1 else f"{passes} times"
        say(f"public text: for the baselines and a first model, which reads it {times}")
    else:
        say("public text: none; --public FILE gives a first model, which ε = 2 needs badly")
    say("policy: ε = 2 for a deployment to 1,000,000 users; state yours in policy.toml")


def _refuse_unread(choice: Preparation, counted: Survey) -> None:
    """Refuse text of which more records are malformed than allowed, before anything is built."""
    tally = Tally(
        records=counted.messages + counted.malformed,
        malformed=counted.malformed,
        examples=[counted.first_malformed],
    )
    tally.refuse_malformed(choice.max_malformed)


def _refuse_inputs_as_public(choice: Preparation) -> None:
    """Refuse a file of the users' text that is named, or lies in a copy, as public text."""
    theirs = [f for path in choice.inputs for f in (text_files(path) if path.is_dir() else [path])]
    for path in choice.public:
        for file in theirs:
            if path.is_file() and file.is_file() and _same_content(path, file):
                raise ValueError(
                    f"--public {path}: this is the users' text of {file}, which no ε covers as "
                    "public text; name text that others published"
                )


def _same_content(one: Path, other: Path) -> bool:
    same_size = one.stat().st_size == other.stat().st_size
    return one.samefile(other) or (same_size and sha256_of(one) == sha256_of(other))


def look(choice: Preparation, say: Say) -> Survey:
    """Read the text once, and say how much there is and what is odd."""
    counted = survey(_records(choice), choice.locale, choice.size or _SIZE)
    say(
        f"text: {counted.users:,} users, {counted.messages:,} messages, {counted.words:,} words, "
        f"{counted.with_emoji / max(1, counted.messages):.0%} of the messages with an emoji"
    )
    for line in oddities(counted):
        say(f"odd: {line}")
    return counted


def _vocabulary(
    choice: Preparation, size: int, folder: Path, destination: Path, say: Say
) -> Tokenizer:
    """Write the vocabulary and its recipe; public text tells how words are usually written."""
    plain = TEMPLATES["chat"].recipes["tokenizer.toml"] | {"locale": choice.locale, "size": size}
    recipe = folder / "tokenizer.toml"
    if choice.public:
        source = choice.public[0]
        forms = {
            "path": os.path.relpath(source.resolve(), destination.resolve()),
            "provenance": f"{source.name}, public text that this folder was prepared with",
            "licence": "as its owner states: write it here",
            "text_field": choice.text_field,
        }
        _write(recipe, plain | {"written_forms": forms})
        try:
            # The recipe's own path is right in the finished folder, which lies elsewhere.
            here = {"written_forms.path": str(source.resolve())}
            tokenizer = build_tokenizer(load(TokenizerRecipe, recipe, here), folder / "tokenizer")
            say(f"capitals: {len(tokenizer.forms):,} words are shown as {source.name} writes them")
            return tokenizer
        except NoWrittenForms:
            say(f"capitals: none; {source.name} does not tell how words are written")
    _write(recipe, plain)
    return build_tokenizer(load(TokenizerRecipe, recipe), folder / "tokenizer")


def _public_text(choice: Preparation, tokenizer: Tokenizer, folder: Path) -> int:
    """Build the store of public text; return how often a first model reads it.

    Raises:
        ValueError: it is the users' own, or holds no message.
    """
    profile = public_tokens(choice.public, tokenizer, folder / "public", choice.text_field)
    refuse_users_text(
        PopulationStore.open(folder / "public"), PopulationStore.open(folder / "people")
    )
    words = max(1, profile["splits"]["train"]["words"])
    return min(_MOST_PASSES, math.ceil(_READ / words))


def _check_splits(splits: Mapping[str, Any]) -> None:
    """Refuse so few users that no run could train on some and measure on others.

    Raises:
        ValueError: naming the split that is too small.
    """
    for split, least in (("train", LEAST_COHORT), ("validation", 1), ("test", 1)):
        if splits[split]["users"] < least:
            raise ValueError(
                f"{splits[split]['users']} users for {split}, {least} or more are needed: users "
                "are split by a digest of their id, about 8 to 1 to 1; bring more users"
            )


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(commented_toml(path.stem, values), encoding="utf-8")


def _records(choice: Preparation) -> Iterator[Any]:
    return chain.from_iterable(
        read_messages(path, choice.user_field, choice.text_field) for path in choice.inputs
    )


def _recipes(size: int, counted: Survey, train: int, large: bool, passes: int) -> dict[str, Any]:
    """Choose tokenizer, scenario, policy and, with public text, a first model's training."""
    chat = TEMPLATES["chat"].recipes
    policy, template = chat["policy.toml"], chat["scenario.toml"]
    model = template["model"] | {"vocabulary_size": size}
    if large:
        model |= {"embedding_dim": 64, "hidden_dim": 128, "lora": {"rank": 8}}
    public = {"public_text": "public"} if passes else {}
    scenario = {key: value for key, value in template.items() if key != "start"} | {
        "description": f"{counted.users:,} users at ε = 2",
        "tokenizer": "tokenizer",
        "rounds": policy["rounds"],
        "cohort": max(LEAST_COHORT, min(100, train // 4)),
        "population": {"kind": "store", "path": "people"} | public,
        "model": model,
        "training": template["training"] | {"max_tokens": _MAX_TOKENS, "loss": "softmax"},
        "payload": {"rows": 2_000, "draw": "unigram", "dense": "lora" if large else "all"},
    }
    if not passes:
        return {"policy.toml": policy, "scenario.toml": scenario}
    first = {key: value for key, value in model.items() if key != "lora"}
    places = {"tokenizer": "tokenizer", "text": "public", "epochs": passes, "model": first}
    return {
        "policy.toml": policy,
        "scenario.toml": scenario | {"start": "start.pt"},
        "pretraining.toml": chat["pretraining.toml"] | places,
    }
