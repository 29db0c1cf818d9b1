"""`pfl-lm words`: ask phones for the words that a vocabulary lacks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_lm.cli.asking import Asking, FleetPath, Lines, print_statements
from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import destination
from pfl_lm.cli.serving import Calls, Keys, ServedLedgers
from pfl_lm.cli.shared_options import with_options
from pfl_lm.cli.tables import print_table

if TYPE_CHECKING:
    from pfl_lm.queries.discover import WordsQuestion
    from pfl_lm.queries.found import FoundWord
    from pfl_lm.text.normalisation import Normalisation
    from pfl_lm.text.tokenizer import Tokenizer

app = typer.Typer(no_args_is_help=True, help="Ask phones for the words that a vocabulary lacks.")

_SHOWN = 15
MOST_ENTRIES, MOST_CELLS = 1000, 1 << 22  # as in ``queries.stated``, which loads too much here


Vocabulary = Annotated[Path, typer.Option(help="The vocabulary that lacks words.")]
PolicyPath = Annotated[
    Path, typer.Option(help="A policy, or the name of a shipped one: words, words_open.")
]
Output = Annotated[Path, destination("Folder to write.")]


@dataclass(frozen=True)
class Wanted:
    """The options that say which words are asked for."""

    open_domain: Annotated[
        bool,
        typer.Option(
            "--open", help="Ask for words in no list, letter by letter [for those of a list]."
        ),
    ] = False
    entries: Annotated[int, number(1, MOST_ENTRIES, "Words that one phone names, at most.")] = 20
    candidates: Annotated[
        int, number(1, MOST_CELLS, "Words of the public list that are asked for.")
    ] = 100_000
    candidates_from: Annotated[
        Path | None,
        typer.Option(help="Public list: a table with columns word and count [wordfreq's list]."),
    ] = None
    cells: Annotated[
        int,
        number(1, MOST_CELLS, "With --open: cells of a round, at most; wider finds more words."),
    ] = 1 << 18
    deny: Annotated[
        Path | None,
        typer.Option(
            help="Words that are never asked for, one in a line, read as the vocabulary reads text."
        ),
    ] = None
    false_words: Annotated[
        float, number(1e-9, 1e3, "Listed words that nobody typed, expected at most.")
    ] = 0.02

    def question(self, vocabulary: Tokenizer, **stated: Any) -> WordsQuestion:
        """Return the question; ``stated`` is what else it states.

        Raises:
            ValueError: the deny list is no text, or has a line that is no single word.
        """
        from pfl_lm.queries.discover import WordsQuestion

        return WordsQuestion(
            domain="open" if self.open_domain else "closed",
            entries=self.entries,
            candidates=self.candidates,
            candidates_from=self.candidates_from,
            cells=self.cells,
            false_positives=self.false_words,
            denied=_denied(self.deny, vocabulary.normalisation),
            **stated,
        )


@app.command()
@with_options(wanted=Wanted, asking=Asking)
def discover(
    store: Annotated[
        Path,
        typer.Argument(help="A population built with `population build --keep-unknown-words`."),
    ],
    tokenizer: Vocabulary,
    policy: PolicyPath,
    output: Output,
    *,
    wanted: Wanted,
    fleet: FleetPath = None,
    asking: Asking,
) -> None:
    """Ask the users of a population for words that their keyboard does not know.

    Every phone names a few of its most used unknown words. It clips and noises its answer as it
    does an update, and the server sees the noisy sum alone. The verb writes the words that noise
    alone hardly reaches, with their noisy sums; the ledger beside them holds what the question
    cost. A tokenizer recipe with `kind = "discovered"` takes the folder, and `pfl-lm grow` gives a
    trained model rows for the words.

    Questions and training share one budget: each round is debited to the ledger of these users too,
    and a question that would exceed what is left of their total is not asked (`pfl-lm privacy
    population`). A question with --seed protects nobody and stands alone.

    A question that was killed goes on with `--resume`. It is asked again with the same noise, so
    it costs nothing more.
    """
    from pfl_lm.dp.policy import Policy
    from pfl_lm.phones.fleet import Fleet
    from pfl_lm.queries.discover import discover as ask_for_words
    from pfl_lm.recipes import load
    from pfl_lm.text.population import PopulationStore
    from pfl_lm.text.tokenizer import Tokenizer

    stated, vocabulary = load(Policy, policy), Tokenizer.open(tokenizer)
    phones = None if fleet is None else load(Fleet, fleet)
    question = wanted.question(vocabulary, fleet=phones, **asking.stated)
    people = PopulationStore.open(store)
    words = ask_for_words(
        question, people, vocabulary, stated, output, Lines(), asking.resume, asking.ledgers
    )
    _show(words, output)


@app.command()
@with_options(wanted=Wanted, calls=Calls)
def serve(
    tokenizer: Vocabulary,
    policy: PolicyPath,
    output: Output,
    keys: Keys,
    *,
    wanted: Wanted,
    calls: Calls,
    trial: Annotated[
        bool,
        typer.Option(
            help="Ask fewer devices than the policy's, each of which adds more noise. Only trial "
            "devices answer, and nobody's budget is spent."
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(help="With --trial: make the outcome repeatable [each device's own noise]."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on after a stop or a crash.")] = False,
    ledgers: ServedLedgers = None,
) -> None:
    """Ask devices that call over the network for words that their keyboard does not know.

    The question of `discover`, asked of the devices that `pfl-lm device run` plays (gRPC, TLS).
    Each device holds the question against its own policy, as for training: the policy's report goal
    is asked in a round, its population is enrolled, and no more rounds are asked than it pays for.
    It answers from its own text, and adds its own noise.

    Each round is debited to the ledger of everybody whom the keys' authority vouches for, which
    training with `pfl-lm serve` debits too. A question that would exceed their total is not asked.

    Killed at any point, the server goes on with --resume. A round that opened no sum is asked
    again under the next number, as long as the policy pays for rounds.
    """
    from pfl_lm.dp.policy import Policy
    from pfl_lm.network.question_server import serve_words
    from pfl_lm.recipes import load
    from pfl_lm.text.tokenizer import Tokenizer

    if seed is not None and not trial:
        raise ValueError("--seed makes noise that anybody can repeat: state --trial too")
    stated, vocabulary = load(Policy, policy), Tokenizer.open(tokenizer)
    question = wanted.question(vocabulary, aggregation="protocol", seed=seed)
    serving = calls.serving(keys, trial, ledgers)
    words = serve_words(question, vocabulary, stated, output, serving, Lines(), resume)
    _show(words, output)


def _denied(path: Path | None, normalisation: Normalisation) -> frozenset[str]:
    """Read the deny list, one word a line, in the form in which phones name words.

    Raises:
        ValueError: the file is no text, or a line is no single word, so that it would deny nothing.
    """
    if path is None:
        return frozenset()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"--deny {path}: not UTF-8 text: {error}") from None
    denied = set()
    for place, line in enumerate(lines, start=1):
        pieces = normalisation.pieces(line)
        if line.strip() and len(pieces) != 1:
            parts = f"this vocabulary reads {', '.join(pieces)}" if pieces else "it has no letter"
            raise ValueError(
                f"--deny {path}:{place}: {line.strip()!r} is no single word: {parts}; write one "
                "word in a line"
            )
        denied.update(pieces)
    return frozenset(denied)


def _show(words: list[FoundWord], output: Path) -> None:
    """Print the strongest words, what is guaranteed, and where the words are."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    strongest = sorted(words, key=lambda word: (-word.sum, word.word))[:_SHOWN]
    if strongest:
        table = Table(title=f"The strongest of {len(words):,} words", title_justify="left")
        table.add_column("word")
        table.add_column("noisy sum", justify="right")
        table.add_column("deviations of the noise", justify="right")
        for word in strongest:
            table.add_row(word.word, f"{word.sum:.1f}", f"{word.deviations:.1f}")
        print_table(table, console)
    print_statements(console, output)
    console.print(f"{len(words):,} words; words and ledger are in {output}", soft_wrap=True)
