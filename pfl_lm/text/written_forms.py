"""How the words of a vocabulary in lower case are usually written: London, I'm, iPhone, Straße.

The model reads and predicts words in lower case, so one word has one row. What a person is shown
is the form that public text gives the word inside of sentences. This is public, costs no ε, and is
looked up after the model: no probability depends on it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pfl_lm.text.normalisation import Normalisation, is_word, sentence_ends
from pfl_lm.text.parts import Remembered, by_parts

_LEAST = 5  # sightings of a form; fewer tell of one writer's habit
_MOST_CAPITALS = (
    0.5  # of the words inside of a message: beyond it the message is a title or shouted
)
_GO_ON = frozenset([",", "'", ";"])  # marks after which a sentence goes on, unless they end one

Piece = tuple[str, str, bool]  # as written, as the vocabulary reads it, whether a sentence begins


@dataclass(frozen=True)
class WrittenFormsSource:
    """Public text from which a vocabulary in lower case learns how its words are written.

    Args:
        path: public text that has capitals, .txt or .jsonl, plain or compressed, relative to the
            recipe.
        provenance: who wrote and collected it, and when.
        licence: SPDX identifier, or the terms in words.
        text_field: field of a .jsonl file.
    """

    path: Path
    provenance: str
    licence: str
    text_field: str = "text"

    def __post_init__(self) -> None:
        for name in ("provenance", "licence"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty; say where the text comes from, by what right")


@dataclass(frozen=True)
class CapitalsMeasured:
    """How many words of some text are shown as their writers wrote them.

    Attributes:
        words: of messages that are written with care.
        right: words whose shown form is the one that was written.
        plain: the same if every word inside of a sentence were shown in lower case.
    """

    words: int
    right: int
    plain: int


def learn(
    texts: Iterable[str], normalisation: Normalisation, words: Iterable[str], locale: str = ""
) -> dict[str, str]:
    """Return the usual form of each word that is not usually written as the vocabulary has it.

    A form counts where a sentence goes on before it: there a capital is the word's own. It is the
    usual one if more than half of the word's sightings, and at least five, have it.

    Args:
        texts: public messages. Those without a capital at the beginning, and those with capitals
            everywhere, tell nothing and are left out.
        normalisation: of the vocabulary, in lower case.
        words: the vocabulary's.
        locale: the vocabulary's, which tells what ends a sentence.
    """
    known, go_on = set(words), _GO_ON - sentence_ends(locale)
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for message in _careful(texts, normalisation, locale):
        before = ""
        for written, word, _ in message:
            if word in known and before and (is_word(before) or before in go_on):
                seen[word][written] += 1
            before = written
    forms = {}
    for word in sorted(seen):
        form, count = min(seen[word].items(), key=lambda item: (-item[1], item[0]))
        if form != word and count >= _LEAST and 2 * count > seen[word].total():
            forms[word] = form
    return forms


def shown(form: str, begins: bool, rules: Normalisation) -> str:
    """Return a word's form as it stands in a text: with a capital where a sentence begins."""
    return rules.capital(form[0]) + form[1:] if begins and form[0].islower() else form


def measure(
    texts: Iterable[str], normalisation: Normalisation, forms: Mapping[str, str], locale: str = ""
) -> CapitalsMeasured:
    """Count the words of careful messages that are shown as they were written."""
    words = right = plain = 0
    for message in _careful(texts, normalisation, locale):
        for written, word, begins in message:
            if is_word(written):
                words += 1
                right += shown(forms.get(word, word), begins, normalisation) == written
                plain += shown(word, begins, normalisation) == written
    return CapitalsMeasured(words, right, plain)


def table(forms: Mapping[str, str]) -> bytes:
    """Return the file of a tokenizer's folder: word, tab, form."""
    lines = ["word\tform", *(f"{word}\t{form}" for word, form in sorted(forms.items()))]
    return ("\n".join(lines) + "\n").encode()


def read_table(content: bytes) -> dict[str, str]:
    """Return what ``table`` wrote.

    Raises:
        ValueError: a line that is no pair.
    """
    forms = {}
    for line in content.decode().splitlines()[1:]:
        word, form = line.split("\t")
        forms[word] = form
    return forms


def _careful(
    texts: Iterable[str], normalisation: Normalisation, locale: str
) -> Iterator[list[Piece]]:
    """Yield the messages that begin with a capital and are neither titles nor shouted."""
    cut = Cutter(normalisation, locale)
    for text in texts:
        message = cut.message(text)
        spoken = [(written, begins) for written, _, begins in message if is_word(written)]
        inside = [written for written, begins in spoken if not begins]
        capitals = sum(written[0].isupper() for written in inside)
        if spoken and spoken[0][0][0].isupper() and capitals <= _MOST_CAPITALS * len(inside):
            yield message


class Cutter:
    """Cuts text as a vocabulary does, and keeps how each piece was written.

    Args:
        locale: the vocabulary's, which tells what ends a sentence.
    """

    def __init__(self, normalisation: Normalisation, locale: str = "") -> None:
        self._ends = sentence_ends(locale)
        rules: Callable[..., Normalisation] = dataclasses.replace
        self._written = rules(normalisation, casing="natural", punctuation="keep", letters=())
        self._read = rules(normalisation, punctuation="keep")
        self._word = Remembered(self._read_as)
        self._cut = by_parts(self._cut_part)

    def message(self, text: str, begins: bool = True) -> list[Piece]:
        """Return the pieces of a text: as written, as read, and whether a sentence begins.

        Args:
            begins: whether one begins with the text.
        """
        message = []
        for written, word in self._cut(text):
            message.append((written, word, begins))
            begins = self.begins_after(written, begins)
        return message

    def begins_after(self, written: str, begins: bool) -> bool:
        """Say whether a sentence begins after a piece, from whether one began before it."""
        return not is_word(written) and (begins or written in self._ends)

    def _cut_part(self, part: str) -> list[tuple[str, str]]:
        return [(written, self._word[written]) for written in self._written.pieces(part)]

    def _read_as(self, written: str) -> str:
        """Return the piece that the vocabulary reads; one that it would cut further stays."""
        pieces = self._read.pieces(written)
        return pieces[0] if len(pieces) == 1 else written
