"""Whose text a run's model is measured on: its own invented users, or a store on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.evaluation.interfaces import HeldOut
from pfl_lm.evaluation.languages import ReadAs
from pfl_lm.models.file import Model
from pfl_lm.run.manifest_file import Manifest
from pfl_lm.run.nearby import find_population, find_tokenizer
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class People:
    """Users whose text is tokens of a vocabulary."""

    tokenizer: Tokenizer
    population: HeldOut

    def of_languages(self, languages: Sequence[str]) -> People:
        """Return these users as a keyboard reads them whose owner writes some languages.

        Raises:
            ValueError: as of ``Tokenizer.of_languages``.
        """
        tokenizer = self.tokenizer.of_languages(languages)
        return People(tokenizer, ReadAs(self.population, tokenizer))


def open_people(
    model: Model,
    manifest: Manifest | None,
    run: Path,
    population: Path | None = None,
    tokenizer: Path | None = None,
    era: float = 0.0,
) -> People:
    """Open users and their vocabulary, and refuse what does not fit the model.

    Args:
        manifest: of the run that trained the model; None for a model file.
        run: its folder; what a manifest only names is looked for near it.
        population, tokenizer: folders; those of the run, or invented users, where they are absent.
        era: how far invented users' topics have moved.

    Raises:
        ValueError: a part is missing or fits another model; the message names the option.
    """
    if manifest is not None and manifest.scenario.population.kind == "store":
        tokenizer = tokenizer or find_tokenizer(manifest, run)
        population = population or find_population(manifest, run)
    if population is None and tokenizer is None:
        return invented_people(model, manifest, era)
    if era:
        raise ValueError("--era moves invented users' topics; a store's text stays what it is")
    if population is None or tokenizer is None:
        raise ValueError("--population and --tokenizer are needed together")
    words, people = Tokenizer.open(tokenizer), PopulationStore.open(population)
    _check_vocabulary(model, words, f"that of {tokenizer}")
    people.require_vocabulary(words.digest, f"{tokenizer}")
    return People(words, people)


def invented_people(model: Model, manifest: Manifest | None, era: float = 0.0) -> People:
    """Invent the users of a run again."""
    from pfl_lm.text.synthetic.population import SyntheticPopulation, synthetic_tokenizer

    if manifest is None or manifest.scenario.population.kind != "synthetic":
        raise ValueError("--population and --tokenizer are missing: say whose text to measure on")
    size, invented = model.spec.vocabulary_size, manifest.scenario.population
    words = synthetic_tokenizer(size, invented.language)
    _check_vocabulary(model, words, "the one that this version invents")
    settings: dict[str, Any] = {"era": era, "language": invented.language}
    people = SyntheticPopulation(
        manifest.population.users,
        size,
        invented.tokens_per_user,
        manifest.scenario.seed,
        **settings,
    )
    return People(words, people)


def _check_vocabulary(model: Model, words: Tokenizer, name: str) -> None:
    if model.origin.get("tokenizer_digest") != words.digest:
        raise ValueError(f"the model was trained with another vocabulary than {name}")
