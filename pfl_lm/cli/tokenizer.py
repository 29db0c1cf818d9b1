"""``pfl-lm tokenizer``: build a public vocabulary, look at one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.arguments import typed
from pfl_lm.cli.outputs import destination
from pfl_lm.cli.recipes import Settings, read

if TYPE_CHECKING:
    from pfl_lm.text.tokenizer import Tokenizer

app = typer.Typer(no_args_is_help=True, help="Build and inspect public vocabularies.")

_FREQUENT = 12
_PATIENCE = 3.0  # seconds of a step, after which it is named where there is no terminal


@app.command()
def build(
    recipe: Annotated[
        Path,
        typer.Argument(help="A vocabulary recipe, or the name of a shipped one, such as en_30k."),
    ],
    output: Annotated[Path, destination("Folder to write.")],
    settings: Settings = None,
) -> None:
    """Build a vocabulary from a public source of words.

    Words must never come from users' text: a vocabulary tells everybody which words it holds. The
    exception is `kind = "discovered"`: words that `pfl-lm words discover` asked for under a policy,
    with the ledger that holds their cost.
    """
    from pfl_lm.queries.found import open_discovered
    from pfl_lm.recipes.names import names_recipe
    from pfl_lm.text.tokenizer_build import build_tokenizer
    from pfl_lm.text.tokenizer_recipe import TokenizerRecipe, refuse_spaceless

    if not names_recipe(recipe):
        refuse_spaceless("locale", recipe.name)  # such a recipe cannot ship
    stated = read(TokenizerRecipe, recipe, settings)
    discovered = None
    if stated.source.kind == "discovered":
        assert stated.source.path is not None
        discovered = open_discovered(stated.source.path)
    with _steps() as watch:
        tokenizer = build_tokenizer(stated, output, watch, discovered)
    _print_summary(tokenizer, output)


@app.command()
def describe(
    folder: Annotated[Path, typer.Argument(help="A folder that `tokenizer build` wrote.")],
    text: Annotated[
        str | None, typer.Option(help="Show how this text is encoded.", callback=typed)
    ] = None,
    measure: Annotated[
        Path | None,
        typer.Option(help="Measure unknown words and capitals on this text: .txt or .jsonl."),
    ] = None,
    text_field: Annotated[str, typer.Option(help="JSON key of the text to measure on.")] = "text",
) -> None:
    """Show what a vocabulary holds, where its words come from, and how it encodes a text."""
    from pfl_lm.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.open(folder)
    _print_summary(tokenizer, folder)
    if measure is not None:
        for line in _measured(tokenizer, measure, text_field):
            typer.echo(f"measured    {line}")
    if text is not None:
        ids = tokenizer.encode(text)
        typer.echo(f"pieces      {' '.join(tokenizer.words[i] for i in ids)}")
        typer.echo(f"ids         {' '.join(map(str, ids))}")
        typer.echo(f"decoded     {tokenizer.decode(ids)}")


@contextmanager
def _steps() -> Iterator[Callable[[str], None]]:
    """Say on standard error what is being done: at once on a terminal, else if it takes long."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
        return
    waiting: list[Timer] = []

    def watch(step: str) -> None:
        while waiting:
            waiting.pop().cancel()
        waiting.append(Timer(_PATIENCE, print, [step], {"file": sys.stderr, "flush": True}))
        waiting[0].daemon = True
        waiting[0].start()

    try:
        yield watch
    finally:
        for timer in waiting:
            timer.cancel()


def _measured(tokenizer: Tokenizer, path: Path, text_field: str) -> Iterator[str]:
    from pfl_lm.text import written_forms
    from pfl_lm.text.readers import read_texts
    from pfl_lm.text.word_counts import unknown_share

    words, unknown = unknown_share(tokenizer, read_texts(path, text_field))
    if not words:
        raise ValueError(f"{path} holds no word to measure on")
    yield f"{unknown / words:.2%} of the {words:,} words of {path} are unknown"
    if tokenizer.forms:
        texts = read_texts(path, text_field)
        locale = tokenizer.manifest.get("locale", "")
        found = written_forms.measure(texts, tokenizer.normalisation, tokenizer.forms, locale)
        right, plain = (n / max(1, found.words) for n in (found.right, found.plain))
        yield (
            f"{right:.2%} of the {found.words:,} words of messages with capitals are shown as they "
            f"were written; without forms {plain:.2%}"
        )


def _unknown(tokenizer: Tokenizer) -> str:
    """Say what share of words is unknown, and where that was counted."""
    kind = tokenizer.manifest.get("source", {}).get("kind")
    counted = {
        "wordfreq": "running text, as wordfreq counted it",
        "word_list": "the list's words; text has more that no list holds",
    }.get(kind, "the words of the source")
    return (
        f"{tokenizer.unigram[tokenizer.unk_id]:.2%} of {counted} "
        "(measure on text of your own: `tokenizer describe --measure`)"
    )


def _print_summary(tokenizer: Tokenizer, folder: Path) -> None:
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
        "unknown": _unknown(tokenizer),
        "frequent": " ".join(frequent),
        "provenance": manifest["provenance"],
        "licence": manifest["licence"],
        "digest": tokenizer.digest,
    }
    if shares := manifest.get("shares"):
        rows["languages"] = ", ".join(f"{tag} {share:.0%}" for tag, share in shares.items())
    if tokenizer.forms:
        source = manifest["written_forms"]
        rows["written"] = f"{len(tokenizer.forms):,} words as {source['file']} writes them"
    for note in manifest.get("notes", ()):
        rows["note"] = note
    if manifest.get("source", {}).get("kind") == "discovered":
        rows["discovered"] = (
            f"{manifest['source']['words']:,} words; {manifest['source']['statement']}"
        )
    if manifest.get("breaks_guarantee"):
        rows["WARNING"] = "learnt from private text: outside the privacy guarantee"
    for name, value in rows.items():
        typer.echo(f"{name:<11} {value}")
