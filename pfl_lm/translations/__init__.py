"""What a phone's user reads, in each language: one catalogue for pages and for Python.

A language is a file ``CODE.json`` in the JSON format of i18next (version 4), which translators'
tools read: groups of keys, values to fill in as ``{{name}}``, and a key for each plural form,
``key_one``, ``key_few``, ``key_other`` (``key_ordinal_one`` for 1st, 2nd). A language that is added
needs its file alone. ``keyboard/page/language.js`` reads the same files in a browser.

Source: https://www.i18next.com/misc/json-format; plural forms and separators are those of the
Unicode CLDR, which Babel and browsers carry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
_VALUE = re.compile(r"\{\{(\w+)\}\}")
_ISOLATE, _ISOLATED = "\u2068", "\u2069"  # between them a text has a direction of its own


@dataclass(frozen=True)
class Language:
    """A language of the catalogue.

    Attributes:
        tag: of the person who reads, such as ``es-MX``: it decides how numbers are written.
        texts: by key, such as ``record.title``.
    """

    tag: str
    texts: Mapping[str, str]

    @classmethod
    def of(cls, tag: str) -> Language:
        """Open the catalogue's language for a tag of BCP 47, ``es``, ``es-MX`` or ``es_MX``.

        Raises:
            ValueError: the catalogue lacks it; the message names those that it has.
        """
        tag = tag.replace("_", "-")
        code = tag.split("-")[0].lower()
        if code not in languages():
            raise ValueError(f"no language {tag!r}: there are {', '.join(languages())}")
        content = json.loads((FOLDER / f"{code}.json").read_text(encoding="utf-8"))
        texts = {
            f"{group}.{key}": text for group, own in content.items() for key, text in own.items()
        }
        return cls(tag, texts)

    @property
    def direction(self) -> str:
        """``ltr`` or ``rtl``."""
        return self.texts["language.direction"]

    def text(self, key: str, **values: str | int) -> str:
        """Return the text of a key with its values filled in.

        Args:
            values: integers are written as the language writes them, texts as they are. ``count``
                chooses the plural form.
        """
        if "count" in values:
            form = self._locale.plural_form(values["count"])
            key = f"{key}_{form}" if f"{key}_{form}" in self.texts else f"{key}_other"
        return _VALUE.sub(lambda found: self._filled(values[found[1]]), self.texts[key])

    def number(self, printed: str | int) -> str:
        """Return a number that is printed as English prints it, 1,234.5, as this language does."""
        from babel.numbers import get_decimal_symbol, get_group_symbol

        text = f"{printed:,}" if isinstance(printed, int) else printed
        symbols = {",": get_group_symbol(self._locale), ".": get_decimal_symbol(self._locale)}
        return "".join(symbols.get(one, one) for one in text)

    def _filled(self, value: str | int) -> str:
        text = self.number(value) if isinstance(value, int) else value
        return f"{_ISOLATE}{text}{_ISOLATED}" if self.direction == "rtl" else text

    @property
    def _locale(self) -> Any:
        from babel import Locale, UnknownLocaleError

        try:
            return Locale.parse(self.tag, sep="-")
        except (UnknownLocaleError, ValueError):
            return Locale.parse(self.tag.split("-")[0].lower())


def languages() -> tuple[str, ...]:
    """Return the codes of the catalogue's languages, in order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
