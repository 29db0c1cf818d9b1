"""Text by its parts between white space: what was made of a common part is remembered.

No piece of a text crosses white space, and no rule for pieces looks beyond it: so what is made of
each part alone, put together, is what is made of the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import TypeVar

_MOST = 1 << 17  # parts; more of them hardly ever come again
_LONGEST = 32  # characters of a part that is remembered: memory has a bound

Made = TypeVar("Made")


class Remembered(dict[str, Made]):
    """What a function makes of text, looked up as ``remembered[text]``; a full memory is emptied.

    Unlike ``functools.lru_cache`` it keeps no order, and nothing of long texts.
    """

    def __init__(self, make: Callable[[str], Made]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, text: str) -> Made:
        made = self._make(text)
        if len(text) <= _LONGEST:
            if len(self) >= _MOST:
                self.clear()
            self[text] = made
        return made


def by_parts(make: Callable[[str], Iterable[Made]]) -> Callable[[str], list[Made]]:
    """Return the function of a text that puts together what ``make`` makes of each part."""
    remembered = Remembered(lambda part: tuple(make(part)))
    look_up = remembered.__getitem__
    return lambda text: list(chain.from_iterable(map(look_up, text.split())))
