"""Where verbs write: the option ``--output`` with its check, and ``--ledgers``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pfl_lm.translations import Language, languages

Ledgers = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the populations' ledgers [`ledgers` beside the store]. Keep one for all "
        "runs and questions on the same people."
    ),
]


def destination(help: str) -> Any:
    """Describe the option ``--output``, whose path must be one that can be written to."""
    return typer.Option("--output", "-o", help=help, callback=writable)


def writable(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse a path that nothing can be written to: an empty one, or one below a file.

    Raises:
        ValueError: naming the option and what is in the way.
    """
    if value is None:
        return None
    name = f"--{str(param.name).replace('_', '-')}"
    if not value.name:  # an unset variable of a shell leaves ""
        raise ValueError(f"{name} is empty, or names no new file or folder: state one")
    for parent in value.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{name} {value}: {parent} is a file, not a folder")
    return value


def page_option(help: str) -> Any:
    """Describe the option ``--output`` of a verb that writes a page; see ``page``."""
    return typer.Option("--output", "-o", help=help, callback=page)


def page(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Refuse a path where a page cannot be written, or where anything but a page lies.

    Raises:
        ValueError: naming the option and what is in the way.
    """
    if writable(param, value) is None or value is None:
        return None
    if value.is_dir():
        raise ValueError(f"--{param.name} {value} is a folder; name the file to write")
    if value.exists() and not (value.is_file() and _begins_as_page(value)):
        raise ValueError(
            f"--{param.name} {value} exists and is no HTML page, so it is not replaced: choose "
            "another name"
        )
    return value


def _begins_as_page(path: Path) -> bool:
    """Whether a file is empty or begins as an HTML page does."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    return not start or start.startswith(b"<!doctype html")


def language_option(help: str) -> Any:
    """Describe the option ``--language``, one of the catalogue's languages."""
    return typer.Option("--language", help=f"{help} ({', '.join(languages())}).", callback=known)


def languages_option() -> Any:
    """Describe the option ``--languages``, those of a vocabulary that a person writes."""
    return typer.Option(
        "--languages",
        metavar="LOCALE,...",
        help="Languages of the vocabulary that the person writes, such as en_US: words that only "
        "its others have are left out [all].",
    )


def known(value: str | None) -> str | None:
    """Refuse a language that the catalogue lacks.

    Raises:
        ValueError: naming those that it has.
    """
    if value is not None:
        try:
            Language.of(value)
        except ValueError as error:
            raise ValueError(f"--language: {error}") from error
    return value
