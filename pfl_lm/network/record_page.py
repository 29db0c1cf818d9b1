"""What a phone took part in, for its owner: lines for a terminal and a page of HTML."""

from __future__ import annotations

import time
from pathlib import Path

from pfl_lm.files import write_atomically
from pfl_lm.network.participation_record import ParticipationRecord
from pfl_lm.network.participation_rules import day
from pfl_lm.numbers import format_epsilon

_FOLDER = Path(__file__).parent
HEADER = ("when (UTC)", "what for", "run", "round", "policy", "ε so far")


def summary(record: ParticipationRecord) -> list[str]:
    """Return what the record says as a whole, one sentence a line."""
    installation, past = record.installation, record.participations()
    vouched = (
        "somebody vouched that it was the first install"
        if installation.is_first
        else "it may have been a reinstall"
    )
    lines = [f"This record began on {day(installation.began)}; {vouched}."]
    if not past:
        return [*lines, "This phone took part in no round."]
    last = past[-1]
    cost, limit = format_epsilon(last.epsilon), format_epsilon(last.epsilon_limit)
    if record.total is not None:
        runs = len({entry.run for entry in past})
        lines.append(
            f"This phone took part in {len(past)} rounds of {runs} runs and questions; ε of all "
            f"of them together is {cost} of its total of {limit} (δ = {record.total.delta:g}), "
            "against everyone, the server included."
        )
        return lines
    lines.append(
        f"This phone took part in {len(past)} of at most {last.most_rounds} rounds that its policy "
        f"allows; ε so far is {cost} of {limit}, against everyone, the server included."
    )
    if len(past) < last.most_rounds:
        lines.append(
            f"It refuses rounds before {last.round + last.min_separation} (two rounds differ by "
            f"min_separation = {last.min_separation} or more) and every other run."
        )
    else:
        lines.append("It refuses every further round.")
    return lines


def table(record: ParticipationRecord) -> list[tuple[str, ...]]:
    """Return a header and a row for each round, padded to equal widths; nothing without rounds."""
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.time)),
            entry.purpose,
            entry.run[:16],
            str(entry.round),
            entry.policy[:16],
            format_epsilon(entry.epsilon),
        )
        for entry in record.participations()
    ]
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    return [
        tuple(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (HEADER, *rows)
    ]


def write_page(record: ParticipationRecord, output: Path) -> None:
    """Write the page: one HTML file that needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("record.html").render(
        summary=summary(record), rows=table(record), name=record.path.name
    )
    with write_atomically(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
