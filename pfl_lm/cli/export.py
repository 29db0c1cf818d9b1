"""`pfl-lm export` and `pfl-lm keyboard`: the model in a phone's hands."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pfl_lm.export.build import Row
    from pfl_lm.export.parity import HeldOutText
    from pfl_lm.export.source import Source

_POSITIONS = 3000


class _Export(typer.core.TyperGroup):
    """``export RUN`` writes a bundle, ``export verify BUNDLE`` checks one."""

    def parse_args(self, context, arguments):  # type: ignore[no-untyped-def]
        named = not arguments or arguments[0] in (*self.commands, "-h", "--help")
        return super().parse_args(context, arguments if named else ["run", *arguments])


app = typer.Typer(
    cls=_Export,
    no_args_is_help=True,
    help="Write a run as one bundle for phones: pfl-lm export RUN -o DIR; or check a bundle.",
)


@app.command(name="run")
def run_(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder, or .zip, to write.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder that `tokenizer build` wrote [invented users'].")
    ] = None,
    population: Annotated[
        Path | None, typer.Option(help="Store with held-out users [the run's invented users].")
    ] = None,
    split: Annotated[str, typer.Option(help="validation or test.")] = "validation",
    formats: Annotated[
        str, typer.Option(help="Comma-separated: onnx, litert, executorch, coreml.")
    ] = "onnx,litert,executorch,coreml",
    precisions: Annotated[
        str, typer.Option(help="Comma-separated: fp32, fp16, int8, int4.")
    ] = "fp32,int8",
    block_list: Annotated[
        Path | None, typer.Option(help="Text file, a word on each line: never suggested [none].")
    ] = None,
    least_agreement: Annotated[
        float, typer.Option(help="Fail below this share of equal three suggestions.")
    ] = 0.98,
    least_agreement_int4: Annotated[float, typer.Option(help="The same, for int4.")] = 0.90,
    positions: Annotated[
        int, typer.Option(help="Words of held-out text to compare on.", min=50)
    ] = _POSITIONS,
    train: Annotated[bool, typer.Option(help="Add the graph of local training.")] = True,
    personal: Annotated[
        bool, typer.Option(help="Add the graph with which a keyboard learns from its owner.")
    ] = True,
    zip: Annotated[bool, typer.Option("--zip", help="Write OUTPUT.zip.")] = False,
) -> None:
    """Write a run as one bundle: graphs, words, model card, privacy statements, test vectors.

    Every file is compared with the torch model and timed; nothing is kept where one falls short.
    """
    from pfl_lm.export.build import Choice, Watch, export
    from pfl_lm.export.source import open_source

    choice = Choice(
        _listed(formats), _listed(precisions), block_list, least_agreement, least_agreement_int4,
        train, personal,
    )  # fmt: skip
    source = open_source(run, tokenizer)
    text = _held_out(source, population, split, positions)
    if zip and output.suffix != ".zip":
        output = output.with_name(f"{output.name}.zip")
    signal.signal(signal.SIGTERM, _stop)  # so that what is half written is cleared away
    seen: list[Row] = []
    watch = Watch(lambda line: typer.echo(line, err=True), seen.append)
    try:
        rows = export(source, output, choice, text, watch)
    except ValueError:
        _show(seen, text)  # the figures say what to change
        raise
    _show(rows, text)
    typer.echo(str(output))


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder or zip that `export` wrote.")],
    run: Annotated[
        Path | None, typer.Option(help="The run, to tell an outdated bundle from a current one.")
    ] = None,
) -> None:
    """Check a bundle: files, ledger, vocabulary, and its test vectors in every runtime here.

    Exit status 0 only where everything that could be checked holds; what could not be run is said.
    """
    from rich.console import Console
    from rich.markup import escape

    from pfl_lm.export.bundle import opened
    from pfl_lm.export.verify import verify_bundle

    console, held, left_out = Console(highlight=False), True, 0
    marks = {True: "[green]holds[/green]", False: "[red]FAILS[/red]", None: "[dim]  –  [/dim]"}
    with opened(bundle) as found:
        for finding in verify_bundle(found, run):
            held &= finding.holds is not False
            left_out += finding.holds is None
            line = f"{marks[finding.holds]}  {escape(finding.name)}: {escape(finding.says)}"
            console.print(line, soft_wrap=True)
    if not held:
        console.print("[bold red]Do not use this bundle.[/bold red]")
        raise typer.Exit(1)
    more = f"; {left_out} not run" if left_out else ""
    console.print(f"[bold]Everything checked holds[/bold]{more}.")


def keyboard(
    bundle: Annotated[Path, typer.Argument(help="Folder or zip that `export` wrote.")],
    port: Annotated[int, typer.Option(help="Of the local server; 0 takes a free one.")] = 8010,
    precision: Annotated[
        str | None, typer.Option(help="fp32, int8, int4 [fp32, the fastest in a browser].")
    ] = None,
    server: Annotated[
        bool, typer.Option("--server", help="Compute here, not in the page's own runtime.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the page as a folder instead."),
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Type on a phone's keyboard that suggests, and learns, by the graphs of a bundle."""
    from pfl_lm.export.bundle import opened
    from pfl_lm.keyboard.server import serve
    from pfl_lm.keyboard.site import Site, write_site

    with opened(bundle) as found:
        site = Site.of(found, precision, server)
        if output is not None:
            typer.echo(str(write_site(site, output)))
            return
        serve(site, port, browser, typer.echo)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _held_out(source: Source, population: Path | None, split: str, positions: int) -> HeldOutText:
    """Open the text to compare on."""
    from pfl_lm.cli.evaluate import invented_users
    from pfl_lm.export.parity import HeldOutText
    from pfl_lm.language.population import PopulationStore

    if split not in ("validation", "test"):
        raise ValueError(f"--split {split}: held-out users are in validation and test")
    window = source.at("scenario", "training", "window") or 20
    if population is None:
        _, people = invented_users(source.model, source.manifest)
        name = f"{split} users that were invented"
        return HeldOutText(name, people, source.tokenizer, split, window, positions)
    store = PopulationStore.open(population)
    if store.tokenizer_digest != source.tokenizer.digest:
        raise ValueError(f"{population} was built with another tokenizer than the run's")
    name = f"{split} users of {store.name}"
    return HeldOutText(name, store, source.tokenizer, split, window, positions)


def _show(rows: list[Row], text: HeldOutText) -> None:
    """Print the figures of every file."""
    from rich.console import Console
    from rich.table import Table

    from pfl_lm.report.numbers import percent, significant, size

    table = Table(title=f"Beside the torch model, on {text.name}", title_style="bold")
    for column in ("file", "size", "top-1 same", "top-3 same", "perplexity", "torch",
                   "keys saved", "torch", "ms/key", "95%", "memory"):  # fmt: skip
        table.add_column(column, justify="left" if column == "file" else "right", no_wrap=True)
    for row in rows:
        parity, cost = row.parity, row.cost
        figures = ["–"] * 6 if parity is None else [
            percent(parity.top1_agreement), percent(parity.top3_agreement),
            significant(parity.perplexity, 4), significant(parity.reference_perplexity, 4),
            percent(parity.keystrokes_saved), percent(parity.reference_keystrokes_saved),
        ]  # fmt: skip
        figures += ["–"] * 3 if cost is None else [
            significant(cost.median_ms), significant(cost.p95_ms), size(cost.peak_memory_bytes)
        ]  # fmt: skip
        table.add_row(row.file.name, size(row.file.bytes), *figures)
    Console(width=150).print(table)
    for row in rows:
        if row.not_run:
            typer.echo(f"{row.file.name}: {row.not_run}")


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
