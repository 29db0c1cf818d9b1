"""`pfl-lm launch`: let phones say whether a new model is better, and decide by a stated rule."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.asking import Asking, FleetPath, Lines
from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import destination
from pfl_lm.cli.serving import Calls
from pfl_lm.cli.shared_options import with_options
from pfl_lm.cli.tables import print_table

if TYPE_CHECKING:
    from rich.table import Table

    from pfl_lm.queries.comparison import Estimate, Measured
    from pfl_lm.queries.launch_rule import Decision

_DEVICES = "devices"  # of --groups: each states its own
_MEASURE = "measure (more is better)"
STATUS = {"launch": 0, "do not launch": 1, "not enough phones": 3}


class Split(StrEnum):
    """Whose users compare the models."""

    train = "train"
    validation = "validation"
    test = "test"


@with_options(asking=Asking, calls=Calls)
def launch(
    candidate: Annotated[Path, typer.Argument(help="The new model's file.")],
    against: Annotated[Path, typer.Option(help="The current model's file, or the public start.")],
    tokenizer: Annotated[Path, typer.Option(help="The vocabulary of both models.")],
    policy: Annotated[Path, typer.Option(help="A policy, or the name of a shipped one: launch.")],
    output: Annotated[Path, destination("Folder to write.")],
    *,
    population: Annotated[
        Path | None, typer.Option(help="Whose phones compare them, in a simulation.")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="Ask devices that call over the network, in place of a population: the folder "
            "that `pfl-lm enrol` wrote."
        ),
    ] = None,
    split: Annotated[
        Split, typer.Option(help="Users of this split are asked; they should not have trained.")
    ] = Split.test,
    alpha: Annotated[
        float, number(1e-6, 0.5, "Chance to launch a model that is no better, at most.")
    ] = 0.05,
    gain: Annotated[
        float, number(1e-6, 0.5, "Gain in nats that is worth a launch; 0.01 is 1% of perplexity.")
    ] = 0.01,
    power: Annotated[
        float, number(0.5, 0.999999, "Chance to launch a model that gains as much.")
    ] = 0.9,
    spread: Annotated[
        float, number(1e-6, 10, "How much users are thought to differ in the gain, in nats.")
    ] = 0.1,
    tokens_per_user: Annotated[
        int, number(2, 1_000_000, "Tokens that one phone scores, at most.")
    ] = 200,
    window: Annotated[int, number(1, 512, "Tokens that a model sees at once.")] = 20,
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|phones|devices",
            help="Give figures by the policy's public_labels too: a table of users and groups, the "
            "classes of --fleet, or with --keys what each device states of itself.",
        ),
    ] = None,
    no_group_worse: Annotated[
        bool,
        typer.Option(
            "--no-group-worse",
            help="With --groups: do not launch what is shown to lose log-loss in one of them.",
        ),
    ] = False,
    fleet: FleetPath = None,
    asking: Asking,
    calls: Calls,
    trial: Annotated[
        bool,
        typer.Option(
            help="With --keys: ask fewer devices than the policy's. Only trial devices answer, and "
            "nobody's budget is spent."
        ),
    ] = False,
) -> None:
    """Let phones compare a new model with the current one, and say whether to launch it.

    Every phone scores both models on its own text and reports clipped differences with its share
    of noise. The verb prints first how often its rule is wrong, then the mean differences with
    intervals that count the noise, and the verdict. Its exit status is 0 for launch, 1 for do not
    launch, and 3 for not enough phones.

    Questions and training share one budget: the comparison is debited to the ledger of the split's
    users too, and is not asked where it would exceed what is left of their total (`pfl-lm privacy
    population`). With --seed it protects nobody and stands alone.

    With --groups there are figures by public group, such as locales or classes of phones. The
    policy names the groups it permits (`public_labels`); without that key the verb refuses. A
    phone's answer is as long as without groups, so the cost is the same, and the noise on every
    figure grows by less than half.

    With --keys in place of --population the devices are those of `pfl-lm device run`, which compare
    the question with their own policy and answer from their own text (`--listen` and what follows).
    """
    from pfl_lm.dp.policy import Policy
    from pfl_lm.models.file import load_model
    from pfl_lm.phones.fleet import Fleet
    from pfl_lm.queries.labels import PHONES
    from pfl_lm.queries.launch import compare
    from pfl_lm.queries.launch_rule import LaunchQuestion
    from pfl_lm.recipes import load
    from pfl_lm.text.population import PopulationStore
    from pfl_lm.text.tokenizer import Tokenizer

    if (population is None) == (keys is None):
        raise ValueError("state --population, or --keys to ask devices that call: one of them")
    if keys is not None and (
        fleet is not None or asking.dropout or (asking.seed is not None and not trial)
    ):
        raise ValueError("--keys: leave out --fleet and --dropout, and --seed without --trial")
    if keys is not None and split is not Split.test:
        raise ValueError(
            "--keys: leave out --split; each device that calls has its own user's text"
        )
    if keys is None and (trial or calls.says_who_answers):
        raise ValueError(
            "--trial, --revoked, --present and --front-ends belong to --keys, and say nothing of a "
            "--population: leave them out; its users pay for the comparison unless --seed is stated"
        )
    if groups is not None and (keys is not None) != (groups == _DEVICES):
        raise ValueError(
            f"--groups {_DEVICES} and --keys belong together: each device that calls states its "
            "group; a table or `phones` says it of a --population"
        )
    table = None if groups in (None, PHONES, _DEVICES) else Path(groups or "")
    question = LaunchQuestion(
        split.value, alpha, gain, power, spread, tokens_per_user, window, groups is not None,
        no_group_worse, fleet=None if fleet is None else load(Fleet, fleet), **asking.stated,
    )  # fmt: skip
    models = load_model(against), load_model(candidate)
    vocabulary, rules = Tokenizer.open(tokenizer), load(Policy, policy)
    if keys is not None:
        from pfl_lm.network.question_server import serve_comparison

        serving = calls.serving(keys, trial, asking.ledgers)
        decision, measured = serve_comparison(
            question, *models, vocabulary, rules, output, serving, Lines(), asking.resume
        )
    else:
        assert population is not None
        store, resume = PopulationStore.open(population), asking.resume
        decision, measured = compare(
            question, *models, store, vocabulary, rules, output, Lines(), resume, asking.ledgers,
            table,
        )  # fmt: skip
    _show(decision, measured, output)
    raise typer.Exit(STATUS[decision.verdict])


def _show(decision: Decision, measured: Measured, output: Path) -> None:
    """Print the differences, then the verdict."""
    from rich.console import Console

    console = Console()
    if measured.whole is not None:
        table = _table("mean over users", _MEASURE, "difference", "95% interval")
        for name, estimate in measured.whole.items():
            table.add_row(name, *_cells(name, estimate, 0.95))
        print_table(table, console)
    if measured.groups:
        print_table(_by_group(measured), console)
    console.print(f"[bold]{decision.verdict}[/bold]: {decision.reason}", soft_wrap=True)
    if decision.phones_needed is not None:
        console.print(f"To tell, it would take about {decision.phones_needed:,} phones.")
    console.print(f"The figures and the ledger are in {output}", soft_wrap=True)


def _by_group(measured: Measured) -> Table:
    """Lay out the differences of each group."""
    from rich.markup import escape

    table = _table("by public group", "group", _MEASURE, "difference", "95%, all groups at once")
    for group, found in measured.groups.items():
        table.add_section()
        if found is None:
            table.add_row(escape(group), "too few phones to tell")
        for place, (name, estimate) in enumerate((found or {}).items()):
            cells = _cells(name, estimate, measured.confidence)
            table.add_row("" if place else escape(group), name, *cells)
    return table


def _table(whom: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=f"Candidate less current, {whom}", title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("group", _MEASURE) else "right")
    return table


def _cells(measure: str, estimate: Estimate, confidence: float) -> tuple[str, str]:
    """Return a difference and its interval, in the measure's unit."""
    low, high = estimate.interval(confidence)
    if measure == "log-loss":
        return f"{estimate.value:+.4f} nats", f"{low:+.4f} to {high:+.4f}"
    return f"{estimate.value:+.2%}", f"{low:+.2%} to {high:+.2%}"
