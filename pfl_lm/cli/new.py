"""`pfl-lm new`: a small project that runs at once."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

_TEMPLATES = ("invented", "chat", "fleet", "network")


def _templates(incomplete: str) -> list[str]:
    return [name for name in _TEMPLATES if name.startswith(incomplete)]


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or an empty folder.")],
    template: Annotated[
        str,
        typer.Option(
            "--template",
            "-t",
            metavar="|".join(_TEMPLATES),
            autocompletion=_templates,
            help="invented: users who write English, nothing to bring. chat: text by user, with a "
            "vocabulary and a first model. fleet: phones decide who takes part. network: a server "
            "and devices that call it.",
        ),
    ] = "invented",
) -> None:
    """Write a small project that runs at once: recipes in which every key is explained.

    The folder holds a scenario and a policy (and what the template needs beside them), a README
    with the commands, and JSON Schemas by which editors check the recipes. Nothing is fetched.
    """
    from rich.console import Console
    from rich.markup import escape

    from pfl_lm.project.create import create

    create(folder, template)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    commands = readme.split("```bash\n", 1)[1].split("```", 1)[0].rstrip()
    console = Console(highlight=False)
    names = " ".join(sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")))
    console.print(f"Wrote {escape(str(folder))}: {escape(names)}", soft_wrap=True)
    console.print("Next:", style="bold")
    for line in [f"cd {shlex.quote(str(folder))}", *commands.split("\n")]:
        console.print(f"  {escape(line)}", soft_wrap=True)
