"""`pfl-lm mixture`: ask phones which public text is like what people type."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.asking import (
    Cohort,
    Dropout,
    Lines,
    Resume,
    SecureAggregation,
    Seed,
    Summing,
    print_statements,
)
from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import Ledgers, destination
from pfl_lm.cli.tables import print_table

if TYPE_CHECKING:
    from pfl_lm.queries.shares import CellShare
    from pfl_lm.text.clusters import Clusters

app = typer.Typer(
    no_args_is_help=True, help="Ask phones which public text is like what people type."
)

_SHOWN = 12  # clusters
_WORDS = 24


@app.command()
def cluster(
    public: Annotated[
        Path, typer.Argument(help="A store that `population public-text` wrote: it is divided.")
    ],
    tokenizer: Annotated[Path, typer.Option(help="The vocabulary of the store.")],
    output: Annotated[Path, destination("Folder to write.")],
    also: Annotated[
        list[Path] | None,
        typer.Option(
            help="Another store of public or synthetic text, which is scored beside it; may be "
            "repeated."
        ),
    ] = None,
    clusters: Annotated[int, number(2, 1024, "Clusters of the public text.")] = 64,
    seed: Annotated[int, number(0, 1 << 62, "Gives the same clusters again.")] = 0,
) -> None:
    """Divide public text into clusters, each with a small model that a phone can hold.

    The division follows from the public text alone and costs no privacy. A store named with
    --also gets clusters of its own, by its size. `mixture ask` then says which share of the phones
    finds its text nearest: a score of synthetic text that nobody's text is read for.
    """
    from pfl_lm.text.clusters import cluster as divide
    from pfl_lm.text.population import PopulationStore
    from pfl_lm.text.tokenizer import Tokenizer

    _refuse_existing(output)
    stores = [PopulationStore.open(path) for path in (public, *(also or ()))]
    found = divide(stores, Tokenizer.open(tokenizer), clusters, seed, Lines().say)
    found.save(output)
    size = found.ratios.nbytes / 1e6
    typer.echo(f"wrote {output}: {len(found.clusters)} clusters, models of {size:.1f} MB")


@app.command()
def ask(
    population: Annotated[Path, typer.Argument(help="The population whose train users vote.")],
    clusters: Annotated[Path, typer.Option(help="A folder that `mixture cluster` wrote.")],
    policy: Annotated[Path, typer.Option(help="A policy, or the name of a shipped one: mixture.")],
    output: Annotated[Path, destination("Folder to write.")],
    entries: Annotated[int, number(1, 1000, "Clusters that one phone names, at most.")] = 1,
    cohort: Cohort = None,
    secure_aggregation: SecureAggregation = Summing.ideal,
    dropout: Dropout = 0.0,
    seed: Seed = None,
    resume: Resume = False,
    ledgers: Ledgers = None,
) -> None:
    """Ask phones which clusters of public text are nearest to their own text.

    Every phone scores its text under the clusters' models and names the nearest, and its words
    among the commonest of the public text. It clips and noises its vote as it does an update, and
    the server sees the noisy sum alone. The verb writes the sums, the weights that follow from
    them, and the ledger; `pfl-lm pretrain --mixture` reads the public text that weighs most.

    Questions and training share one budget: the vote is debited to the ledger of these users too,
    and is not asked where it would exceed what is left of their total (`pfl-lm privacy
    population`). A vote with --seed protects nobody and stands alone.
    """
    from pfl_lm.dp.policy import Policy
    from pfl_lm.queries.mixture import MixtureQuestion, ask_for_mixture
    from pfl_lm.recipes import load
    from pfl_lm.text.clusters import Clusters
    from pfl_lm.text.population import PopulationStore

    stated, opened = load(Policy, policy), Clusters.open(clusters)
    question = MixtureQuestion(
        entries, cohort, secure_aggregation.kind,
        dropout, seed,
    )  # fmt: skip
    shares = ask_for_mixture(
        question, opened, PopulationStore.open(population), stated, output, Lines(), resume, ledgers
    )
    _show(shares, opened, output)


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise ValueError(f"--output {output} exists already; remove it or choose another name")


def _show(shares: list[CellShare], clusters: Clusters, output: Path) -> None:
    """Print the strongest clusters and words, each store's share, and what is guaranteed."""
    from rich.console import Console
    from rich.table import Table

    console, number_of = Console(), len(clusters.clusters)
    table = Table(title=f"The strongest of {number_of} clusters", title_justify="left")
    for column in ("cluster", "of its text", "votes", "weight"):
        table.add_column(column, justify="left" if column == "cluster" else "right")
    named, total = shares[:number_of], max(1.0, sum(share.sum for share in shares[:number_of]))
    rows = zip(named, clusters.clusters, clusters.public_shares(), strict=True)
    for share, about, of_store in sorted(rows, key=lambda row: -row[0].sum)[:_SHOWN]:
        weight = f"{share.weight:.2f}" if about.store == 0 else ""  # others are not read
        table.add_row(share.label, f"{of_store:.1%}", f"{share.sum / total:.1%}", weight)
    print_table(table, console)
    telling = sorted(shares[number_of:], key=lambda s: -s.sum * max(0.0, math.log(s.weight)))
    words = " ".join(share.label.split(": ", 1)[1] for share in telling[:_WORDS])
    console.print(f"Words that phones name oftener: {words}", soft_wrap=True, markup=False)
    for place, store in enumerate(clusters.stores if len(clusters.stores) > 1 else ()):
        own = [s for s, c in zip(named, clusters.clusters, strict=True) if c.store == place]
        console.print(f"{store['name']}: {_share_of(own, total)} of the votes")
    print_statements(console, output)
    console.print(f"The shares and the ledger are in {output}", soft_wrap=True)


def _share_of(shares: list[CellShare], total: float) -> str:
    """Return a store's share of the votes for clusters, ± two deviations of the noise."""
    deviation = next((s.sum / s.deviations for s in shares if s.deviations), 0.0)
    error = 2 * deviation * math.sqrt(len(shares)) / total
    return f"{sum(share.sum for share in shares) / total:.1%} ± {error:.1%}"
