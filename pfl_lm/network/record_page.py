"""What a phone took part in, for its owner: lines for a terminal and a page of HTML."""

from __future__ import annotations

from pathlib import Path

from pfl_lm.files import write_atomically
from pfl_lm.network.participation_record import ParticipationRecord
from pfl_lm.network.participation_rules import day, moment
from pfl_lm.numbers import format_epsilon
from pfl_lm.translations import Language

_FOLDER = Path(__file__).parent
COLUMNS = ("when", "purpose", "run", "round", "policy", "epsilon")


def summary(record: ParticipationRecord, language: Language) -> list[str]:
    """Return what the record says as a whole, one sentence a line."""
    installation, past = record.installation, record.participations()
    began = "record.firstInstall" if installation.is_first else "record.mayBeReinstall"
    lines = [language.text(began, day=day(installation.began))]
    total = record.total
    delta = "" if total is None else language.number(f"{total.delta:g}")
    if not past:
        lines.append(language.text("record.none"))
        if total is not None:
            limit = language.number(format_epsilon(total.epsilon))
            lines.append(language.text("record.unspent", limit=limit, delta=delta))
        return lines
    last = past[-1]
    figures = {
        "epsilon": language.number(format_epsilon(last.epsilon)),
        "limit": language.number(format_epsilon(last.epsilon_limit)),
    }
    if total is not None:
        tasks = language.text("record.tasks", count=len({entry.run for entry in past}))
        more = {"tasks": tasks, "delta": delta, **figures}
        return [*lines, language.text("record.total", count=len(past), **more)]
    lines.append(language.text("record.oneRun", rounds=len(past), most=last.most_rounds, **figures))
    if len(past) >= last.most_rounds:
        return [*lines, language.text("record.refusesAll")]
    separation = last.min_separation
    next_round = last.round + separation
    return [*lines, language.text("record.refusesBefore", round=next_round, separation=separation)]


def table(record: ParticipationRecord, language: Language) -> list[tuple[str, ...]]:
    """Return a header and a row for each round; nothing without rounds."""
    rows = [
        (
            moment(entry.time),
            _purpose(entry.purpose, language),
            entry.run[:16],
            str(entry.round),
            entry.policy[:16],
            language.number(format_epsilon(entry.epsilon)),
        )
        for entry in record.participations()
    ]
    return [tuple(language.text(f"record.{name}") for name in COLUMNS), *rows] if rows else []


def _purpose(stated: str, language: Language) -> str:
    """Return what a round was for; a kind of question that the catalogue lacks as it is stated."""
    key = f"purpose.{stated}"
    return language.text(key) if key in language.texts else stated


def write_page(record: ParticipationRecord, output: Path, language: Language) -> None:
    """Write the page: one HTML file that needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("record.html").render(
        language=language,
        summary=summary(record, language),
        rows=table(record, language),
        name=record.path.name,
    )
    with write_atomically(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
