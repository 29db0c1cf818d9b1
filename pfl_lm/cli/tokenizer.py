"""``pfl-lm tokenizer``: build a public vocabulary, look at one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Build and inspect public vocabularies.")

_FREQUENT = 12


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="A recipe of tokenizers/*.toml.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
) -> None:
    """Build the vocabulary that a recipe states."""
    from pfl_lm.language.tokenizer_build import build_tokenizer
    from pfl_lm.recipes import load_tokenizer_recipe

    _print_summary(build_tokenizer(load_tokenizer_recipe(recipe), output), output)


@app.command()
def describe(
    folder: Annotated[Path, typer.Argument(help="A folder that `tokenizer build` wrote.")],
    text: Annotated[str | None, typer.Option(help="Show how this text is encoded.")] = None,
) -> None:
    """Say what a vocabulary holds, where it comes from, and how it encodes a text."""
    from pfl_lm.language.tokenizer import Tokenizer

    tokenizer = Tokenizer.open(folder)
    _print_summary(tokenizer, folder)
    if text is not None:
        ids = tokenizer.encode(text)
        typer.echo(f"pieces      {' '.join(tokenizer.words[i] for i in ids)}")
        typer.echo(f"ids         {' '.join(map(str, ids))}")
        typer.echo(f"decoded     {tokenizer.decode(ids)}")


def _print_summary(tokenizer, folder: Path) -> None:  # type: ignore[no-untyped-def]
    from collections import Counter

    manifest, kinds = tokenizer.manifest, Counter(tokenizer.kinds)
    parts = ", ".join(f"{count:,} {kind}s" for kind, count in kinds.items())
    frequent = [tokenizer.words[i] for i in range(tokenizer.vocabulary_size)
                if tokenizer.kinds[i] == "word"][:_FREQUENT]  # fmt: skip
    stated = tokenizer.normalisation
    rows = {
        "tokenizer": folder,
        "size": f"{tokenizer.vocabulary_size:,} ({parts})",
        "text": f"casing {stated.casing}, punctuation {stated.punctuation}, "
        f"numbers {stated.numbers}, placeholders {' '.join(stated.placeholders) or 'none'}",
        "unknown": f"{tokenizer.unigram[tokenizer.unk_id]:.2%} of public running text",
        "frequent": " ".join(frequent),
        "provenance": manifest["provenance"],
        "licence": manifest["licence"],
        "digest": tokenizer.digest,
    }
    if manifest.get("breaks_guarantee"):
        rows["WARNING"] = "learnt from private text: outside the privacy guarantee"
    for name, value in rows.items():
        typer.echo(f"{name:<11} {value}")
