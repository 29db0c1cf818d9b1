"""`pfl-lm evaluate`: how good a model is for people whose text it has never seen."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_lm.cli.arguments import listed
from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import languages_option
from pfl_lm.cli.tables import print_table

if TYPE_CHECKING:
    from pfl_lm.evaluation.measures import Evaluation
    from pfl_lm.evaluation.personal import Gain
    from pfl_lm.models.file import Model
    from pfl_lm.run.manifest_file import Manifest

WINDOW = 20


def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="RUN|MODEL", help="Folder of a run, or a model file.")
    ],
    population: Annotated[
        Path | None,
        typer.Option(help="Folder that `population build` wrote [the run's, found by digest]."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder that `tokenizer build` wrote [the run's, found by digest]."),
    ] = None,
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    users: Annotated[int | None, number(1, 10**9, "Number of users to draw [all].")] = None,
    tokens_per_user: Annotated[
        int | None, number(2, 10**9, "Most tokens to read of each user [all].")
    ] = None,
    window: Annotated[
        int | None, number(1, 100000, "Tokens seen at once [the run's, or 20].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw of users.")] = 0,
    era: Annotated[
        float,
        number(0, 10**6, "How far invented users' topics have moved (population.drift)."),
    ] = 0.0,
    adapt: Annotated[
        str | None,
        typer.Option(
            metavar="biases|lora|ffa_lora|side_branch",
            help="Let each phone adapt this part of the model on the first half of its user's "
            "text, and measure both models on the second half.",
        ),
    ] = None,
    own_words: Annotated[
        bool,
        typer.Option(
            "--own-words",
            help="Measure also with what phones remember: the state of the text so far, and counts "
            "of the user's own words.",
        ),
    ] = False,
    compose: Annotated[
        bool,
        typer.Option(
            "--compose",
            help="Suggest also words that a vocabulary's subwords spell, as `suggest` does: it "
            "takes some thirty times as long.",
        ),
    ] = False,
    rate: Annotated[float, number(1e-9, 1e6, "Learning rate of the adaptation.")] = 0.3,
    epochs: Annotated[int, number(1, 10_000, "Passes over the first half.")] = 2,
    languages: Annotated[str, languages_option()] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
) -> None:
    """Measure a model on held-out users: perplexity, recall, keystrokes saved."""
    from pfl_lm.devices.local_training import LocalTraining
    from pfl_lm.evaluation.evaluate import ModelScorer
    from pfl_lm.evaluation.evaluate import evaluate as measure
    from pfl_lm.evaluation.languages import without_left_out
    from pfl_lm.evaluation.own_words import own_words_gain
    from pfl_lm.evaluation.personal import personal_gain
    from pfl_lm.payload.plan import PayloadPlan
    from pfl_lm.run.held_out import open_people

    if split not in ("validation", "test"):
        raise ValueError(f"--split {split}: held-out users are in validation and test")
    loaded, manifest = _load(model)
    people = open_people(loaded, manifest, model, population, tokenizer, era)
    if written := listed(languages):
        people = people.of_languages(written)
        loaded = without_left_out(loaded, people.tokenizer)
    window = window or (manifest.scenario.window if manifest else None) or WINDOW
    if compose and (own_words or adapt is not None):
        raise ValueError("--compose measures the shared model: leave --own-words and --adapt out")
    if own_words and adapt is not None:
        raise ValueError("--own-words and --adapt measure different memories; choose one")
    chosen: dict[str, Any] = {
        "max_users": users,
        "max_tokens_per_user": tokens_per_user,
        "seed": seed,
    }
    model_and_people = loaded.spec, loaded.parameters, people.population, split, people.tokenizer
    if own_words:
        gain = own_words_gain(*model_and_people, window, **chosen)
        _show_gain(gain, "their text from its beginning", "with own words", as_json, written)
        return
    if adapt is not None:
        local = LocalTraining(rate, batch_size=4, epochs=epochs, gradient_clip=1.0, window=window)
        plan = PayloadPlan(rows="none", dense=adapt)  # type: ignore[arg-type]
        gain = personal_gain(*model_and_people, plan, local, **chosen)
        _show_gain(gain, "the second half of their text", "everybody's own", as_json, written)
        return
    figures = measure(
        ModelScorer(loaded.spec, loaded.parameters),
        people.population,
        split,
        people.tokenizer,
        window,
        compose=compose,
        **chosen,
    )
    if as_json:
        _print_json(figures.as_dict(), written)
    else:
        _show(figures, split, written)


def _load(path: Path) -> tuple[Model, Manifest | None]:
    """Open a model file, or what a run has trained so far with the run's manifest."""
    from pfl_lm.models.file import load_model
    from pfl_lm.run.trained import load_trained

    return load_trained(path) if path.is_dir() else (load_model(path), None)


def _print_json(figures: dict[str, Any], languages: Sequence[str]) -> None:
    """Print figures, and the languages that they are of if some were chosen."""
    from pfl_lm.evaluation.measures import finite

    told = finite(figures) | ({"languages": languages} if languages else {})
    typer.echo(json.dumps(told, indent=2, allow_nan=False))


def _writing(languages: Sequence[str]) -> str:
    return f", writing {', '.join(languages)}" if languages else ""


def _show(figures: Evaluation, split: str, languages: Sequence[str]) -> None:
    """Print the figures, all words beside the words of the vocabulary."""
    from rich.table import Table

    from pfl_lm.evaluation.labels import AS_TYPED
    from pfl_lm.numbers import format_perplexity, percent

    title = f"{figures.users:,} {split} users, {figures.words:,} words{_writing(languages)}"
    table = Table(title=title, title_style="bold")
    for column in ("", "all words", "known words", "median user"):
        table.add_column(column, justify="left" if not column else "right")
    spread = {name: d.quantiles[len(d.quantiles) // 2] for name, d in figures.over_users.items()}
    table.add_row(
        "perplexity",
        format_perplexity(figures.perplexity),
        format_perplexity(figures.perplexity_known),
        format_perplexity(spread["perplexity"]),
    )
    for label, name in (
        ("top-1 recall", "top1"),
        ("top-3 recall", "top3"),
        ("keystrokes saved", "keystrokes_saved"),
    ):
        values = getattr(figures, name), getattr(figures, f"{name}_known"), spread[name]
        table.add_row(label, *map(percent, values))
    for bucket in figures.buckets:
        table.add_row(f"top-3, rank {bucket.name}", "", percent(bucket.top3), "")
    table.add_row("unknown words", f"{figures.oov_rate:.1%}", "", "")
    for name, label in AS_TYPED.items():
        if not math.isnan(value := getattr(figures, name)):
            table.add_row(label, percent(value), "", "")
    print_table(table)


def _show_gain(gain: Gain, text: str, column: str, as_json: bool, languages: Sequence[str]) -> None:
    """Print both models side by side, and how often what a phone keeps for itself hurts."""
    from rich.console import Console
    from rich.table import Table

    from pfl_lm.numbers import format_perplexity, percent

    if as_json:
        figures = {
            "shared": gain.shared.as_dict(),
            "personal": gain.personal.as_dict(),
            "coordinates": gain.coordinates,
            "hurt": gain.hurt,
            "nats_per_token": gain.nats.tolist(),
        }
        _print_json(figures, languages)
        return
    title = f"{gain.shared.users:,} users, {text}{_writing(languages)}"
    table = Table(title=title, title_style="bold")
    for heading in ("", "shared model", column):
        table.add_column(heading, justify="left" if not heading else "right")
    both = gain.shared, gain.personal
    table.add_row("perplexity", *(format_perplexity(figures.perplexity) for figures in both))
    for label, name in (
        ("top-1 recall", "top1"),
        ("top-3 recall", "top3"),
        ("keystrokes saved", "keystrokes_saved"),
    ):
        table.add_row(label, *(percent(getattr(figures, name)) for figures in both))
    console = Console()
    print_table(table, console)
    kept = f"{gain.coordinates:,} numbers adapted on each phone; " if gain.coordinates else ""
    console.print(f"{kept}for {gain.hurt:.0%} of the users the shared model alone was better")
