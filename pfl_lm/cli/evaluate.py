"""`pfl-lm evaluate`: how good a model is for people whose text it has never seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pfl_lm.evaluation.evaluate import HeldOut
    from pfl_lm.evaluation.measures import Evaluation
    from pfl_lm.evaluation.personal import Gain
    from pfl_lm.language.tokenizer import Tokenizer
    from pfl_lm.model_file import Model

WINDOW = 20


def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="RUN|MODEL", help="Folder of a run, or a model file.")
    ],
    population: Annotated[
        Path | None,
        typer.Option(help="Store that `population build` wrote [the run's invented users]."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder that `tokenizer build` wrote.")
    ] = None,
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    users: Annotated[int | None, typer.Option(help="Draw so many users [all].", min=1)] = None,
    tokens_per_user: Annotated[
        int | None, typer.Option(help="At most so many tokens of each [all].", min=2)
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Tokens seen at once [the run's, or 20].", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw of users.")] = 0,
    era: Annotated[
        float,
        typer.Option(help="How far invented users' topics have moved (population.drift).", min=0),
    ] = 0.0,
    adapt: Annotated[
        str | None,
        typer.Option(
            metavar="biases|lora|ffa_lora|residual",
            help="Let each phone adapt that much on the first half of its user's text, and "
            "measure both models on the second.",
        ),
    ] = None,
    rate: Annotated[float, typer.Option(help="Learning rate of adapting.")] = 0.3,
    epochs: Annotated[int, typer.Option(help="Passes over the first half.", min=1)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
) -> None:
    """Measure a model on held-out users: perplexity, recall, keystrokes saved."""
    from pfl_lm.devices.batches import LocalTraining
    from pfl_lm.evaluation.evaluate import ModelScorer
    from pfl_lm.evaluation.evaluate import evaluate as measure
    from pfl_lm.evaluation.personal import personal_gain
    from pfl_lm.payload import PayloadPlan

    if split not in ("validation", "test"):
        raise ValueError(f"--split {split}: held-out users are in validation and test")
    loaded, manifest = _load(model)
    words, people = _open(loaded, manifest, population, tokenizer, era)
    window = window or _at(manifest, "scenario", "training", "window") or WINDOW
    if adapt is not None:
        local = LocalTraining(rate, batch_size=4, epochs=epochs, gradient_clip=1.0, window=window)
        plan = PayloadPlan(rows="none", dense=adapt)  # type: ignore[arg-type]
        _show_gain(
            personal_gain(
                loaded.spec,
                loaded.parameters,
                people,
                split,
                words,
                plan,
                local,
                max_users=users,
                max_tokens_per_user=tokens_per_user,
                seed=seed,
            ),
            as_json,
        )
        return
    found = measure(
        ModelScorer(loaded.spec, loaded.parameters),
        people,
        split,
        words,
        window,
        max_users=users,
        max_tokens_per_user=tokens_per_user,
        seed=seed,
    )
    typer.echo(json.dumps(found.as_dict(), indent=2)) if as_json else _show(found, split)


def _load(path: Path) -> tuple[Model, dict[str, Any]]:
    """Open a model file, or what a run has trained so far with the run's manifest."""
    from pfl_lm.checkpoints import newest_checkpoint
    from pfl_lm.model_file import Model, load_model, spec_from
    from pfl_lm.runs import RunFolder

    if not path.is_dir():
        return load_model(path), {}
    folder = RunFolder.open(path)
    manifest = folder.manifest()
    if folder.model_path.is_file():
        return load_model(folder.model_path), manifest
    state, _ = newest_checkpoint(folder)
    origin = {"tokenizer_digest": _at(manifest, "tokenizer", "digest")}
    spec = spec_from(_at(manifest, "scenario", "model"))
    return Model(spec, dict(state.parameters), origin), manifest


def _open(
    model: Model,
    manifest: dict[str, Any],
    population: Path | None,
    tokenizer: Path | None,
    era: float,
) -> tuple[Tokenizer, HeldOut]:
    """Open the vocabulary and the users, and refuse what does not fit the model."""
    from pfl_lm.language.population import PopulationStore
    from pfl_lm.language.tokenizer import Tokenizer

    if population is None and tokenizer is None:
        return invented_users(model, manifest, era)
    if era:
        raise ValueError("--era moves invented users' topics; a store's text stays what it is")
    if population is None or tokenizer is None:
        raise ValueError("--population and --tokenizer are needed together")
    words, people = Tokenizer.open(tokenizer), PopulationStore.open(population)
    _check_vocabulary(model, words, f"that of {tokenizer}")
    if people.tokenizer_digest != words.digest:
        raise ValueError(f"{population} was built with another tokenizer than {tokenizer}")
    return words, people


def _check_vocabulary(model: Model, words: Tokenizer, name: str) -> None:
    if model.origin.get("tokenizer_digest") != words.digest:
        raise ValueError(f"the model was trained with another vocabulary than {name}")


def invented_users(
    model: Model, manifest: dict[str, Any], era: float = 0.0
) -> tuple[Tokenizer, HeldOut]:
    """Invent the users of a run again."""
    from pfl_lm.language.synthetic import SyntheticPopulation, synthetic_tokenizer

    if _at(manifest, "scenario", "population", "kind") != "synthetic":
        raise ValueError("--population and --tokenizer are missing: say whose text to measure on")
    words = synthetic_tokenizer(model.spec.vocabulary_size)
    _check_vocabulary(model, words, "the one that this version invents")
    people = SyntheticPopulation(
        manifest["population"]["users"],
        model.spec.vocabulary_size,
        manifest["scenario"]["population"]["tokens_per_user"],
        manifest["scenario"]["seed"],
        era=era,
    )
    return words, people


def _show(found: Evaluation, split: str) -> None:
    """Print the figures, all words beside the words of the vocabulary."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found.users:,} {split} users, {found.words:,} words", title_style="bold")
    for column in ("", "all words", "known words", "median user"):
        table.add_column(column, justify="left" if not column else "right")
    spread = {name: d.quantiles[len(d.quantiles) // 2] for name, d in found.over_users.items()}
    table.add_row(
        "perplexity",
        f"{found.perplexity:.1f}",
        f"{found.perplexity_known:.1f}",
        f"{spread['perplexity']:.1f}",
    )
    for label, name in (
        ("top-1 recall", "top1"),
        ("top-3 recall", "top3"),
        ("keystrokes saved", "keystrokes_saved"),
    ):
        values = getattr(found, name), getattr(found, f"{name}_known"), spread[name]
        table.add_row(label, *(f"{value:.1%}" for value in values))
    for bucket in found.buckets:
        table.add_row(f"top-3, rank {bucket.name}", "", f"{bucket.top3:.1%}", "")
    table.add_row("unknown words", f"{found.oov_rate:.1%}", "", "")
    Console().print(table)


def _show_gain(found: Gain, as_json: bool) -> None:
    """Print both models side by side, and how often adapting hurts."""
    from rich.console import Console
    from rich.table import Table

    if as_json:
        figures = {
            "shared": found.shared.as_dict(),
            "personal": found.personal.as_dict(),
            "coordinates": found.coordinates,
            "hurt": found.hurt,
            "nats_per_token": found.nats.tolist(),
        }
        typer.echo(json.dumps(figures, indent=2))
        return
    title = f"{found.shared.users:,} users, the second half of their text"
    table = Table(title=title, title_style="bold")
    for column in ("", "shared model", "everybody's own"):
        table.add_column(column, justify="left" if not column else "right")
    both = found.shared, found.personal
    table.add_row("perplexity", *(f"{figures.perplexity:.1f}" for figures in both))
    for label, name in (
        ("top-1 recall", "top1"),
        ("top-3 recall", "top3"),
        ("keystrokes saved", "keystrokes_saved"),
    ):
        table.add_row(label, *(f"{getattr(figures, name):.1%}" for figures in both))
    console = Console()
    console.print(table)
    console.print(
        f"{found.coordinates:,} numbers adapted on each phone; for {found.hurt:.0%} of the users "
        "the shared model was better"
    )


def _at(manifest: dict[str, Any], *keys: str) -> Any:
    value: Any = manifest
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
