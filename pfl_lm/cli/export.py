"""`pfl-lm export` and `pfl-lm keyboard`: the model in a phone's hands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_lm.cli.arguments import listed
from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import destination, language_option, languages_option
from pfl_lm.cli.tables import print_table

if TYPE_CHECKING:
    from pfl_lm.export.build import MeasuredFile
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
    help="Write a run as a bundle for phones (`pfl-lm export RUN -o DIR`), or verify a bundle.",
)


@app.command(name="run")
def run_(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    output: Annotated[
        Path,
        destination("Folder or .zip file to write."),
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder that `tokenizer build` wrote [the run's, found by its digest]."),
    ] = None,
    population: Annotated[
        Path | None,
        typer.Option(help="Population with held-out users [the run's, found by its digest]."),
    ] = None,
    split: Annotated[str, typer.Option(help="validation or test.")] = "validation",
    formats: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: onnx, litert, executorch, coreml [all installed]; arpa, aosp: "
            "the model as an n-gram, for decoders and for Android's keyboards."
        ),
    ] = None,
    precisions: Annotated[
        str, typer.Option(help="Comma-separated: fp32, fp16, int8, int4.")
    ] = "fp32,int8",
    block_list: Annotated[
        Path | None,
        typer.Option(help="Text file of words that are never suggested, one in a line [none]."),
    ] = None,
    least_agreement: Annotated[
        float,
        number(
            0, 1, "Refuse a file that agrees with torch on the first three suggestions less often."
        ),
    ] = 0.98,
    least_agreement_int4: Annotated[float, number(0, 1, "The same, for int4.")] = 0.90,
    positions: Annotated[
        int, number(50, 10**7, "Number of held-out words to compare on.")
    ] = _POSITIONS,
    train: Annotated[bool, typer.Option(help="Add the graph of a round's local training.")] = True,
    personal: Annotated[
        bool, typer.Option(help="Add the graph that lets a keyboard learn from its owner.")
    ] = True,
    zip: Annotated[bool, typer.Option("--zip", help="Write OUTPUT.zip.")] = False,
    order: Annotated[int, number(2, 3, "arpa, aosp: words of the longest n-gram.")] = 3,
    ngram_mb: Annotated[
        float, number(0.1, 16, "arpa, aosp: largest size of each file, in millions of bytes.")
    ] = 10.0,
    ngram_words: Annotated[
        int,
        number(
            100, 10**6, "arpa, aosp: number of words that the model writes, to average over them."
        ),
    ] = 100_000,
    public_text: Annotated[
        Path | None,
        typer.Option(
            help="arpa, aosp: folder that `population public-text` wrote, to be counted as well "
            "[none]."
        ),
    ] = None,
) -> None:
    """Write a run as one bundle: graphs, words, model card, privacy statements, test vectors.

    The verb compares every file with the torch model and times it. If one file falls short, it
    keeps none.
    """
    from pfl_lm.cli.progress import ExportProgress
    from pfl_lm.export.build import export
    from pfl_lm.export.config import ExportConfig, NgramConfig
    from pfl_lm.export.source import open_source

    config = ExportConfig(
        _formats(formats), listed(precisions), block_list, least_agreement, least_agreement_int4,
        train, personal, NgramConfig(order, ngram_mb, ngram_words, public_text),
    )  # fmt: skip
    source = open_source(run, tokenizer)
    text = _held_out(source, population, split, positions)
    if zip and output.suffix != ".zip":
        output = output.with_name(f"{output.name}.zip")
    progress = ExportProgress()
    try:
        rows = export(source, output, config, text, progress)
    except ValueError:
        if progress.rows:
            _show(progress.rows, text)  # the figures say what to change
        raise
    if rows:
        _show(rows, text)
    if progress.ngram:
        _show_ngram(progress.ngram)
    typer.echo(str(output))


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder or zip that `export` wrote.")],
    run: Annotated[
        Path | None,
        typer.Option(
            help="The run that the bundle was made from: compare its model with weights and graphs."
        ),
    ] = None,
) -> None:
    """Verify a bundle: files, ledger, vocabulary, block list, and test vectors in every installed
    runtime; with `--run` also that it holds the run's model.

    The exit status is 0 only if everything that could be checked holds. The verb lists what it
    could not run.
    """
    from rich.console import Console
    from rich.markup import escape

    from pfl_lm.export.bundle import opened
    from pfl_lm.export.verify import verify_bundle

    console, held, left_out = Console(highlight=False), True, 0
    marks = {True: "[green]holds[/green]", False: "[red]FAILS[/red]", None: "[dim]  –  [/dim]"}
    with opened(bundle) as opened_bundle:
        for finding in verify_bundle(opened_bundle, run):
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
    port: Annotated[int, number(0, 65_535, "Port of the local server; 0 takes a free one.")] = 8010,
    precision: Annotated[
        str | None, typer.Option(help="fp32, int8, int4 [fp32, the fastest in a browser].")
    ] = None,
    server: Annotated[
        bool, typer.Option("--server", help="Compute in this process, not in the browser.")
    ] = False,
    output: Annotated[
        Path | None,
        destination("Write the page as a folder and serve nothing."),
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    language: Annotated[
        str | None, language_option("Language of the page [the browser's, else the bundle's]")
    ] = None,
    languages: Annotated[str, languages_option()] = "",
) -> None:
    """Open a page with a keyboard that suggests words, and learns, by the graphs of a bundle."""
    from pfl_lm.export.bundle import opened
    from pfl_lm.keyboard.server import serve
    from pfl_lm.keyboard.site import Site, write_site

    with opened(bundle) as opened_bundle:
        site = Site.of(opened_bundle, precision, server, language, listed(languages))
        if output is not None:
            typer.echo(str(write_site(site, output)))
            return
        serve(site, port, browser, typer.echo)


def _formats(text: str | None) -> tuple[str, ...]:
    """Return the formats to write: those that are stated, or all whose toolchain is installed."""
    from pfl_lm.export.formats.registry import FORMATS

    if text is not None:
        return listed(text)
    absent = {name: remedy for name, known in FORMATS.items() if (remedy := known.missing())}
    if len(absent) == len(FORMATS):
        raise ValueError(
            f"no format's toolchain is installed; the extras are {', '.join(FORMATS)}: "
            'pip install "pfl-lm[onnx]" installs one'
        )
    for name, remedy in absent.items():
        typer.echo(f"{name} is left out: {remedy}", err=True)
    return tuple(name for name in FORMATS if name not in absent)


def _held_out(source: Source, population: Path | None, split: str, positions: int) -> HeldOutText:
    """Open the text to compare on."""
    from pfl_lm.export.parity import HeldOutText
    from pfl_lm.run.held_out import invented_people
    from pfl_lm.run.nearby import find_population
    from pfl_lm.text.population import PopulationStore

    if split not in ("validation", "test"):
        raise ValueError(f"--split {split}: held-out users are in validation and test")
    window = source.window
    if source.manifest.scenario.population.kind == "store":
        population = population or find_population(source.manifest, source.folder.path)
    if population is None:
        people = invented_people(source.model, source.manifest).population
        name = f"{split} users that were invented"
        return HeldOutText(name, people, source.tokenizer, split, window, positions)
    store = PopulationStore.open(population)
    store.require_vocabulary(source.tokenizer.digest, "the run's")
    name = f"{split} users of {store.name}"
    return HeldOutText(name, store, source.tokenizer, split, window, positions)


def _show(rows: list[MeasuredFile], text: HeldOutText) -> None:
    """Print the figures of every file."""
    from rich.table import Table

    from pfl_lm.numbers import percent, significant, size

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
            significant(cost.median_ms), significant(cost.p95_ms),
            "–" if cost.peak_memory_bytes is None else size(cost.peak_memory_bytes),
        ]  # fmt: skip
        table.add_row(row.file.name, size(row.file.bytes), *figures)
    print_table(table)
    for row in rows:
        if row.not_run:
            typer.echo(f"{row.file.name}: {row.not_run}")


def _show_ngram(stated: dict[str, Any]) -> None:
    """Print the n-gram's files, and its figures beside the network's."""
    from pfl_lm.numbers import percent, significant, size

    for file in stated["files"]:
        typer.echo(f"{file['path']}: {size(file['bytes'])}")
    quality = stated["quality"]
    network, ngram = quality["network"], quality["ngram"]
    typer.echo(
        f"n-gram of order {stated['order']} (the network) on {quality['text']}: perplexity "
        f"{significant(ngram['perplexity'], 4)} ({significant(network['perplexity'], 4)}), top-1 "
        f"{percent(ngram['top1'])} ({percent(network['top1'])}), top-3 {percent(ngram['top3'])} "
        f"({percent(network['top3'])})"
    )
    typer.echo(stated["statement"])
