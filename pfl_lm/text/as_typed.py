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

from pfl_lm.text.normalisation import PUNCTUATION, UNKNOWN, is_word
from pfl_lm.text.pieces import is_emoji
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.text.written_forms import Cutter, shown

KEYS, SHOWN = 0x7FFF, 0x8000  # of a code: the keys; whether it is shown as it was written
_PLAIN_MARKS = (".", ",")


class AsTyped:
    """Encodes how messages of held-out users were typed, a code for each token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        rules = tokenizer.normalisation
        self._tokenizer = tokenizer
        self._keeps_marks = rules.punctuation == "keep"
        self._masks = frozenset((*rules.placeholders, UNKNOWN))
        self._cut = Cutter(rules)

    def codes(self, text: str) -> list[int]:
        """Return the code of each id of ``tokenizer.encode(text)``, and of the message's end.

        All are 0 in a message that is cut otherwise once its capitals are gone: nothing is
        counted there.
        """
        message = self._cut.message(text)
        read = [word for written, word, _ in message if self._has_an_id(written)]
        if read != self._tokenizer.normalisation.pieces(text):
            return [0] * (len(self._tokenizer.encode(text)) + 1)
        codes: list[int] = []
        left_out, page = 0, ""
        for written, word, begins in message:
            count = 0 if written in self._masks else keys(written, begins, page)
            page = page_of(written)
            if self._has_an_id(written):
                codes += self._of_piece(written, word, begins, count)
            else:
                left_out += count
        return [*codes, min(left_out, KEYS)]

    def _has_an_id(self, written: str) -> bool:
        return self._keeps_marks or is_word(written) or written in self._masks

    def _of_piece(self, written: str, word: str, begins: bool, count: int) -> list[int]:
        ids = self._tokenizer.ids_of(word)
        # Pieces spell a word's letters, and a composed word is shown as they do.
        spelled = self._tokenizer.kinds[ids[0]] == "subword"
        form = shown(word if spelled else self._tokenizer.shown(ids[0]), begins)
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
    shifts = sum(letter.isupper() for letter in written)
    if begins and written[0].isupper() and (shifts == 1 or shifts < len(written)):
        shifts -= 1
    count, other = 1 + min(shifts, 2), False
    for letter in written:
        before, other = other, letter.isdigit() or letter in PUNCTUATION
        count += 1 + (other and not before)
    return count
