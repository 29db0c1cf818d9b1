"""What the devices of `pfl-lm device run` hold: their own text, or that of users they play."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pfl_lm.network.identity import DeviceKey
    from pfl_lm.network.task_config import DeviceSetup


def own_setup(
    text: Path | None,
    tokenizer: Path | None,
    policy: Path | None,
    record: Path,
    first_install: bool,
    total: float | None,
    delta: float | None,
) -> DeviceSetup:
    """Read what a phone holds: its user's text, vocabulary and policy, and its record.

    Raises:
        ValueError: an option is missing, or a file is damaged.
    """
    from pfl_lm.dp.policy import Policy
    from pfl_lm.dp.population_spent import Total
    from pfl_lm.network.participation_record import ParticipationRecord
    from pfl_lm.network.task_config import DeviceSetup, own_tokens, own_unknown_words
    from pfl_lm.recipes import load
    from pfl_lm.text.tokenizer import Tokenizer

    if text is None or tokenizer is None or policy is None:
        raise ValueError("state --text, --tokenizer and --policy, or --trial SCENARIO")
    try:
        written = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{text} is no UTF-8 text ({error}); convert it") from error
    vocabulary = Tokenizer.open(tokenizer)
    rules = load(Policy, policy)
    stated = None if total is None or delta is None else Total(total, delta)
    return DeviceSetup(
        vocabulary,
        rules,
        own_tokens(written, vocabulary),
        ParticipationRecord(record, first_install, total=stated),
        unknown_words=own_unknown_words(written, vocabulary),
    )


def played_setups(scenario: Path, keys: list[DeviceKey]) -> list[DeviceSetup]:
    """Play users of a scenario's population, who train."""
    from pfl_lm.dp.policy import Policy
    from pfl_lm.network.task_config import DeviceSetup
    from pfl_lm.recipes import load
    from pfl_lm.run.scenario import Scenario
    from pfl_lm.run.setup import open_text

    played = load(Scenario, scenario)
    tokenizer, population, _ = open_text(played)
    policy = None if played.policy is None else load(Policy, played.policy)
    _check_users(keys, population.users("train"))
    return [
        DeviceSetup(tokenizer, policy, population.tokens("train", key.number), trial=True)
        for key in keys
    ]


def setups_of_store(
    folder: Path, tokenizer: Path | None, policy: Path | None, keys: list[DeviceKey]
) -> list[DeviceSetup]:
    """Play train users of a population, with the words that its vocabulary lacks, if kept."""
    from pfl_lm.dp.policy import Policy
    from pfl_lm.network.task_config import DeviceSetup
    from pfl_lm.queries.discover import most_used_first
    from pfl_lm.recipes import load
    from pfl_lm.text.population import PopulationStore
    from pfl_lm.text.tokenizer import Tokenizer

    if tokenizer is None or policy is None:
        raise ValueError(f"--trial {folder}: state --tokenizer and --policy too")
    store, vocabulary, rules = (
        PopulationStore.open(folder),
        Tokenizer.open(tokenizer),
        load(Policy, policy),
    )
    store.require_vocabulary(vocabulary.digest, f"{tokenizer}")
    _check_users(keys, store.users("train"))
    kept = (folder / "train.unknown").is_file()
    words = list(store.unknown_words("train")) if kept else [{}] * store.users("train")
    return [
        DeviceSetup(
            vocabulary,
            rules,
            store.tokens("train", key.number),
            trial=True,
            unknown_words=most_used_first(words[key.number]),
        )
        for key in keys
    ]


def _check_users(keys: list[DeviceKey], users: int) -> None:
    """Refuse keys whose number no user of a population has."""
    if beyond := [key.number for key in keys if key.number >= users]:
        raise ValueError(f"device {beyond[0]} has no user: the population has {users}")
