"""`pfl-lm mixture`: ask phones which public text is like what people type."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.asking import Asking, Lines, print_statements
from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import destination
from pfl_lm.cli.shared_options import with_options
from pfl_lm.cli.tables import print_table

if TYPE_CHECKING:
    from pfl_lm.queries.shares import CellShare
    from pfl_lm.text.clusters import Clusters

app = typer.Typer(
    no_args_is_help=True, help="Ask phones which public text is like what people type."
)

_SHOWN = 12  # clusters
_WORDS = 24
_TELLING = 4.0  # deviations by which a word's votes exceed what public text would have said


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
@with_options(asking=Asking)
def ask(
    population: Annotated[Path, typer.Argument(help="The population whose train users vote.")],
    clusters: Annotated[Path, typer.Option(help="A folder that `mixture cluster` wrote.")],
    policy: Annotated[Path, typer.Option(help="A policy, or the name of a shipped one: mixture.")],
    output: Annotated[Path, destination("Folder to write.")],
    *,
    entries: Annotated[int, number(1, 1000, "Clusters that one phone names, at most.")] = 1,
    asking: Asking,
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
    question, people = MixtureQuestion(entries, **asking.stated), PopulationStore.open(population)
    shares = ask_for_mixture(
        question, opened, people, stated, output, Lines(), asking.resume, asking.ledgers
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
    stores = [_called(place, store["name"]) for place, store in enumerate(clusters.stores)]
    for column in ("cluster", "of its text", "votes", "weight"):
        table.add_column(column, justify="left" if column == "cluster" else "right")
    named, total = shares[:number_of], max(1.0, sum(share.sum for share in shares[:number_of]))
    rows = zip(named, clusters.clusters, clusters.public_shares(), strict=True)
    for share, about, of_store in sorted(rows, key=lambda row: -row[0].sum)[:_SHOWN]:
        weight = f"{share.weight:.2f}" if about.store == 0 else ""  # others are not read
        label = f"{share.label} (store {about.store + 1})" if len(stores) > 1 else share.label
        table.add_row(label, f"{of_store:.1%}", f"{share.sum / total:.1%}", weight)
    print_table(table, console)
    words = " ".join(_named_oftener(shares[number_of:])) or "none that noise does not explain"
    console.print(f"Words that phones name oftener: {words}", soft_wrap=True, markup=False)
    for place, store_name in enumerate(stores if len(stores) > 1 else ()):
        own = [c.store == place for c in clusters.clusters]
        share_of = _share_of([share.sum for share in named], own, _deviation(named))
        console.print(f"{store_name}: {share_of} of the votes", markup=False)
    print_statements(console, output)
    console.print(f"The shares and the ledger are in {output}", soft_wrap=True)


def _called(place: int, name: str) -> str:
    """Name a store for a reader: public stores mostly bear one name."""
    return f"store {place + 1}, {name}" if place else f"store 1, {name}, which was divided"


def _named_oftener(shares: list[CellShare]) -> list[str]:
    """Return the words that phones name oftener than noise explains, the most telling first."""
    from pfl_lm.text.normalisation import is_word

    words = {share.label.split(": ", 1)[1]: share for share in shares}
    telling = {
        word: share.sum * math.log(share.weight)
        for word, share in words.items()
        if is_word(word) and share.sum - share.expected > _TELLING * _deviation(shares)
    }
    return sorted(telling, key=lambda word: -telling[word])[:_WORDS]


def _deviation(shares: list[CellShare]) -> float:
    """Return the deviation of the noise on a cell."""
    return next((share.sum / share.deviations for share in shares if share.deviations), 0.0)


def _share_of(sums: list[float], own: list[bool], deviation: float) -> str:
    """Return a store's share of the votes for clusters, ± two deviations of what noise does to it.

    The share s is a ratio of noisy sums. To first order, the noise of one of its own n clusters
    moves it by (1 − s) ÷ total, that of one of the m others by −s ÷ total.

    Args:
        sums: noisy votes for each cluster.
        own: whether the cluster is the store's.
        deviation: of the noise on a cluster's votes.
    """
    total = sum(sums)
    others = len(own) - sum(own)
    if total <= 2 * deviation * math.sqrt(len(sums)):
        return "an unknown share (too few phones vote)"
    share = sum(votes for votes, of_store in zip(sums, own, strict=True) if of_store) / total
    error = 2 * deviation * math.sqrt(sum(own) * (1 - share) ** 2 + others * share**2) / total
    return f"{share:.1%} ± {error:.1%}"
