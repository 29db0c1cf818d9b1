"""How held-out messages were typed: what the ids of a vocabulary do not keep of them.

A code goes with each token: ``SHOWN``, if a keyboard would show the word as its writer wrote it,
and the keys that it took to type it. Every vocabulary counts the same keys in the same message.

    a letter, a comma, a full stop, the space after a word or number     one key each
    a capital inside of a sentence                                       one key more, two for a
                                                                         word of several (the lock)
    the capital that begins a sentence                                   free: keyboards set it
    a digit, another mark, an emoji                                      one key more for the page
                                                                         of a run of them
    a mask such as ``<url>``                                             none: nobody knows it

Accents cost nothing more (a long press). Marks that the vocabulary leaves out are counted at the
end of the message.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from pfl_lm.text.normalisation import PUNCTUATION, UNKNOWN, is_word
from pfl_lm.text.parts import Remembered
from pfl_lm.text.pieces import is_emoji
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.text.written_forms import Cutter, shown

KEYS, SHOWN = 0x7FFF, 0x8000  # of a code: the keys; whether it is shown as it was written
_MARKS, _PLAIN_MARKS = frozenset(PUNCTUATION), (".", ",")
_PAGES = ("", "emoji", "marks")


class _State(NamedTuple):
    """What the keys of a piece depend on, beside the piece."""

    begins: bool = True  # a sentence
    page: str = ""  # of the keyboard, that is open


class _Part(NamedTuple):
    """How one part of a message, between white space, was typed."""

    codes: tuple[int, ...]
    left_out: int  # keys of the marks that the vocabulary leaves out
    after: _State


class AsTyped:
    """Encodes how messages of held-out users were typed, a code for each token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        rules = tokenizer.normalisation
        self._tokenizer = tokenizer
        self._keeps_marks = rules.punctuation == "keep"
        self._masks = frozenset((*rules.placeholders, UNKNOWN))
        self._cut = Cutter(rules, tokenizer.manifest.get("locale", ""))
        self._parts = {
            state: Remembered(partial(self._part, state))
            for state in (_State(begins, page) for begins in (True, False) for page in _PAGES)
        }

    def codes(self, text: str) -> list[int]:
        """Return the code of each id of ``tokenizer.encode(text)``, and of the message's end.

        All are 0 in a message that is cut otherwise once its capitals are gone: nothing is
        counted there.
        """
        codes: list[int] = []
        left_out, state = 0, _State()
        for text_of_part in text.split():
            part = self._parts[state][text_of_part]
            if part is None:
                return [0] * (len(self._tokenizer.encode(text)) + 1)
            codes += part.codes
            left_out += part.left_out
            state = part.after
        return [*codes, min(left_out, KEYS)]

    def _part(self, state: _State, text: str) -> _Part | None:
        """Return how a part was typed; None if it is cut otherwise without its capitals."""
        message = self._cut.message(text, state.begins)
        read = [word for written, word, _ in message if self._has_an_id(written)]
        if read != self._tokenizer.normalisation.pieces(text):
            return None
        codes: list[int] = []
        left_out = 0
        for written, word, begins in message:
            count = 0 if written in self._masks else keys(written, begins, state.page)
            state = _State(self._cut.begins_after(written, begins), page_of(written))
            if self._has_an_id(written):
                codes += self._of_piece(written, word, begins, count)
            else:
                left_out += count
        return _Part(tuple(codes), left_out, state)

    def _has_an_id(self, written: str) -> bool:
        return self._keeps_marks or is_word(written) or written in self._masks

    def _of_piece(self, written: str, word: str, begins: bool, count: int) -> list[int]:
        ids = self._tokenizer.ids_of(word)
        # Pieces spell a word's letters, and a composed word is shown as they do.
        spelled = self._tokenizer.kinds[ids[0]] == "subword"
        inside = word if spelled else self._tokenizer.shown(ids[0])
        form = shown(inside, begins, self._tokenizer.normalisation)
        first = (SHOWN if form == written else 0) | min(count, KEYS)
        return [first, *[0] * (len(ids) - 1)]


def page_of(written: str) -> str:
    """Return the page of the keyboard that a piece other than a word is typed on; "": the first."""
    if is_word(written) or written[0] in _PLAIN_MARKS:
        return ""
    return "emoji" if is_emoji(written) else "marks"


def keys(written: str, begins: bool = False, page: str = "") -> int:
    """Return the keys that one piece of a text takes, the space after a word included.

    Args:
        written: the piece as it was written; no mask.
        begins: whether it is the first word of a sentence.
        page: which is open, as ``page_of`` the piece before.
    """
    if not is_word(written):
        own = page_of(written)
        return (1 if own == "emoji" else len(written)) + (own not in ("", page))
    shifts = 0 if written.islower() else sum(map(str.isupper, written))
    if begins and written[0].isupper() and (shifts == 1 or shifts < len(written)):
        shifts -= 1
    count, other = 1 + min(shifts, 2) + len(written), False
    if not written.isalpha():
        for letter in written:
            before, other = other, letter.isdigit() or letter in _MARKS
            count += other and not before
    return count
