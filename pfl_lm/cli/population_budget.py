"""`pfl-lm privacy population`: the one budget of the same people, and who has spent it."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import Ledgers

if TYPE_CHECKING:
    from pfl_lm.dp.population_ledger import PopulationAccount
    from pfl_lm.dp.population_spent import PopulationSpent


class Split(StrEnum):
    """Whose users: each split of a store is a population of its own."""

    train = "train"
    validation = "validation"
    test = "test"


def population(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="STORE|KEYS|LEDGERS",
            help="A population's store, the keys of a server, a ledger, or a folder of ledgers.",
        ),
    ],
    total: Annotated[
        float | None,
        number(1e-9, 1e9, "State the ε that all runs and questions together may cost; once."),
    ] = None,
    delta: Annotated[
        float | None, number(1e-300, 1 - 1e-9, "δ of the total; at most 1/population.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Of a store: whose users.")] = Split.train,
    ledgers: Ledgers = None,
    head: Annotated[
        str | None,
        typer.Option(help="A last hash that was published: a ledger that lacks it is refused."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show, or state, the one budget that training and questions on the same people share.

    `serve`, `words serve` and `launch --keys` keep a ledger for the devices of their authority;
    `simulate`, where it runs at the policy's own scale, `words discover`, `launch` and
    `mixture ask` keep one for the users of a store's split. Before a run, a round or a question,
    what it would cost together with all others is compared with the total.

    The total is stated with --total and --delta before the first run or question. Where nobody
    stated one, it is the least ε, at the least δ, of all policies under which a round was spent,
    and a total that is stated later can only be as much or less.

    Publish the last hash. A ledger that was cut short, begun again or replaced by an older copy
    lacks it (--head).
    """
    from pfl_lm.dp.population_ledger import PopulationLedger
    from pfl_lm.dp.population_spent import PopulationSpent, population_spent

    if (total is None) != (delta is None):
        raise ValueError("--total and --delta go together: ε of a total holds at its δ")
    account = _account(path, split, ledgers)
    if total is not None and delta is not None:
        if account is None:
            raise ValueError("--total: name one population, by its store or by its server's keys")
        with PopulationLedger.open(account) as ledger:
            ledger.state_total(total, delta)
    if account is not None and not account.path.is_file():
        spent = {account.path: PopulationSpent(account.digest, "", None)}
    else:
        found = path if account is None else account.path
        paths = sorted(found.glob("*.jsonl")) if found.is_dir() else [found]
        spent = {ledger_path: population_spent(ledger_path) for ledger_path in paths}
    if not spent:
        raise ValueError(f"{path} holds no ledger of a population")
    if head is not None:
        _require(head, list(spent))
    if as_json:
        typer.echo(json.dumps([told.as_plain() for told in spent.values()], allow_nan=False))
        return
    for ledger_path, told in spent.items():
        typer.echo("\n".join(_lines(ledger_path, told)))


def _require(head: str, ledgers: list[Path]) -> None:
    """Refuse a ledger that lacks a published line."""
    from pfl_lm.dp.ledger import verify

    if len(ledgers) != 1:
        raise ValueError("--head is that of one population: name its store, its keys or its ledger")
    verify(ledgers[0], head)


def _account(path: Path, split: Split, ledgers: Path | None) -> PopulationAccount | None:
    """Return whose ledger is meant; None where a ledger, or a folder of them, is named itself."""
    from pfl_lm.dp.population_ledger import PopulationAccount

    if (path / "population.json").is_file():
        from pfl_lm.text.population import PopulationStore

        store = PopulationStore.open(path)
        return PopulationAccount.of_store(store.digest_of(split.value), store.folder, ledgers)
    if (path / "authority.pub").is_file():
        from pfl_lm.network.identity import ServerKeys

        return ServerKeys(path).account(ledgers)
    return None


def _lines(ledger: Path, spent: PopulationSpent) -> list[str]:
    """Return a population's budget as text: total, spent, by whom, and the last hash."""
    from pfl_lm.numbers import format_epsilon, format_epsilon_bound

    lines = [f"population  {spent.digest} ({ledger})"]
    if spent.total is None or spent.cost is None:
        lines.append("total       not stated: it will be the least ε of all policies that spend")
        lines.append("spent       nothing: no round is debited")
    else:
        most = spent.cost.participations
        rounds = sum(spender.rounds for spender in spent.spent_by)
        lines += [
            f"total       {spent.total}",
            (
                f"spent       ε = {format_epsilon(spent.cost.epsilon)} in {rounds:,} rounds, "
                f"one user in {most:,} of them at most"
            ),
            f"left        ε = {format_epsilon_bound(spent.left)}",
        ]
    lines += [f"by          {spender}" for spender in spent.spent_by]
    return [*lines, f"last hash   {spent.head}"] if spent.head else lines
