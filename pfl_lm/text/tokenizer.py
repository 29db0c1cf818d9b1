"""The public vocabulary: text to ids and back, the same on the phone as in training."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.files import folder_atomically
from pfl_lm.text.normalisation import Normalisation, is_word, language_of
from pfl_lm.text.parts import Remembered, by_parts
from pfl_lm.text.written_forms import read_table

CONTROLS = ("<pad>", "<unk>", "<s>", "</s>")
MODEL_FILE, SUBWORD_FILE = "tokenizer.model", "subwords.model"
VOCABULARY_FILE, MANIFEST_FILE = "vocabulary.tsv", "tokenizer.json"
FORMS_FILE = "forms.tsv"
LEFT_OUT = "left out"  # the kind of a word of languages that a person does not write
# Marks that follow a word without a space, and those that precede one so.
_AFTER_WORD = frozenset([*".,!?:;)]}»،؛؟।॥۔·։՝።፣፤፥", "..."])
_BEFORE_WORD = frozenset("([{¿¡«")
_GUILLEMETS = frozenset("«»")  # French puts spaces inside of them
_ELIDED = re.compile(r"[^\W\d_]'$")
_MOST_JOINED = 32  # pieces between two spaces


class Tokenizer:
    """A vocabulary and the text normalisation that goes with it. Immutable.

    Ids: 0 ``<pad>``, 1 ``<unk>``, 2 ``<s>``, 3 ``</s>``, placeholders, marks, words by falling
    public frequency, and last the subwords, if any.

    Attributes:
        vocabulary_size: V, every id is below it.
        specials: ids of controls and placeholders.
        words: surface form by id; a subword as sentencepiece writes it.
        forms: how words are usually written that are not written as ``words`` has them.
        kinds: by id: ``control``, ``placeholder``, ``mark``, ``word``, ``subword``, ``left out``.
        locales: those whose words the vocabulary has.
        only_of: by id: the locale that a word belongs to alone; empty where it belongs to all.
        left_out: int64, ids of words that belong to no chosen language (:meth:`of_languages`).
        unigram: float64[V], public probabilities, all above 0, their sum 1.
        digest: SHA-256 over all files.
    """

    pad_id, unk_id, bos_id, eos_id = range(4)

    def __init__(self, files: dict[str, bytes], languages: Sequence[str] = ()) -> None:
        """Read the files of a tokenizer folder; ``open`` and ``build_tokenizer`` call this.

        Args:
            languages: as of :meth:`of_languages`.

        Raises:
            ValueError: the files are not those that were written together.
        """
        self.files, self.languages = files, tuple(languages)
        self.manifest: dict[str, Any] = json.loads(files[MANIFEST_FILE])
        for name, sha256 in self.manifest["files"].items():
            if hashlib.sha256(files.get(name, b"")).hexdigest() != sha256:
                raise ValueError(f"{name} is not the file that {MANIFEST_FILE} was written with")
        self.digest = hashlib.sha256(files[MANIFEST_FILE]).hexdigest()
        self.normalisation = Normalisation.stated(self.manifest["normalisation"])
        rows = [line.split("\t") for line in files[VOCABULARY_FILE].decode().splitlines()[1:]]
        self.words = [row[1] for row in rows]
        self.kinds = [row[2] for row in rows]
        self.locales = tuple(self.manifest.get("shares") or [self.manifest.get("locale", "")])
        self.only_of = [row[4] if len(row) > 4 else "" for row in rows]
        self._leave_out()
        self.forms = read_table(files[FORMS_FILE]) if FORMS_FILE in files else {}
        counts = np.array([int(row[3]) for row in rows], dtype=np.float64) + 0.5
        self.unigram: np.ndarray = counts / counts.sum()  # float64 (V,)
        self.unigram.flags.writeable = False
        self.vocabulary_size = len(rows)
        self.specials = tuple(
            i for i, kind in enumerate(self.kinds) if kind in ("control", "placeholder")
        )
        self._prepare()

    @property
    def breaks_guarantee(self) -> bool:
        """Whether its words, or those of a vocabulary it grew from, are of private text."""
        return bool(self.manifest.get("breaks_guarantee"))

    @property
    def provenance(self) -> str:
        """Where the words come from, and how they are written."""
        stated = str(self.manifest.get("provenance", "not stated"))
        forms = self.manifest.get("written_forms")
        return f"{stated}; written as in: {forms['provenance']}" if forms else stated

    def _leave_out(self) -> None:
        """Give the words of other languages alone a kind of their own."""
        others = set(self.locales) - set(self.languages) if self.languages else set()
        self.left_out = np.flatnonzero([locale in others for locale in self.only_of])
        for id in self.left_out:
            self.kinds[id] = LEFT_OUT
        self._unread = {self.words[id] for id in self.left_out}

    def _prepare(self) -> None:
        """Build the look-ups; a dict costs a tenth of a sentencepiece call."""
        whole = ("placeholder", "mark", "word")
        pairs = zip(self.words, self.kinds, strict=True)
        self._ids = {piece: i for i, (piece, kind) in enumerate(pairs) if kind in whole}
        self._ids["<unk>"] = self.unk_id
        self._folded: dict[str, int] = {}
        if self.normalisation.casing == "natural":
            for word, i in self._ids.items():
                self._folded.setdefault(word.lower(), i)
        self._subwords: Any = None
        self._first_subword = self.vocabulary_size
        if SUBWORD_FILE in self.files:
            from sentencepiece import SentencePieceProcessor

            self._subwords = SentencePieceProcessor(model_proto=self.files[SUBWORD_FILE])
            self._first_subword -= len(self._subwords) - 1  # its own <unk> has no id here
        self._resolved = Remembered(self._look_up)
        self._encode = by_parts(self._encode_part)
        self._unknown_words = by_parts(self._unknown_in_part)

    @classmethod
    def open(cls, folder: Path) -> Tokenizer:
        """Open a folder that ``build_tokenizer`` or ``save`` wrote; a changed file is refused."""
        folder = Path(folder)
        if not (folder / MANIFEST_FILE).is_file():
            raise ValueError(
                f"{folder} holds no tokenizer ({MANIFEST_FILE} is absent); "
                "`pfl-lm tokenizer build` writes one"
            )
        try:
            files = {MANIFEST_FILE: (folder / MANIFEST_FILE).read_bytes()}
            for name in (MODEL_FILE, VOCABULARY_FILE, SUBWORD_FILE, FORMS_FILE):
                if name in json.loads(files[MANIFEST_FILE])["files"]:
                    files[name] = (folder / name).read_bytes()
            return cls(files)
        except (KeyError, OSError, IndexError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{folder}: not a usable tokenizer: {error}; build it anew") from error

    def of_languages(self, languages: Sequence[str]) -> Tokenizer:
        """Return the vocabulary of a person who writes some of its languages.

        Words of the other languages alone keep their ids. Text that has them is read as with a
        vocabulary that lacks them: as ``<unk>``.

        Args:
            languages: some of ``locales``; empty: all.

        Raises:
            ValueError: an unknown one, or the files do not say whose words they have.
        """
        if unknown := [one for one in languages if one not in self.locales]:
            raise ValueError(
                f"--languages: no {unknown[0]!r} in this vocabulary; it has "
                f"{', '.join(filter(None, self.locales)) or 'no stated language'}"
            )
        if len(self.locales) > 1 and not any(self.only_of):
            raise ValueError(
                "--languages: the vocabulary does not say which words belong to which language; "
                "an earlier version built it. Build it again with `pfl-lm tokenizer build`, then "
                "the stores and models that were made with it"
            )
        return Tokenizer(self.files, languages)

    def save(self, folder: Path) -> None:
        """Write the folder; raises ValueError if it exists."""
        with folder_atomically(folder) as temporary:
            for name, content in self.files.items():
                (temporary / name).write_bytes(content)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[dict[str, bytes], tuple[str, ...]]]:
        return Tokenizer, (self.files, self.languages)

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without ``<s>`` and ``</s>``."""
        return self._encode(text)

    def _encode_part(self, part: str) -> list[int]:
        pieces = self.normalisation.pieces(part)
        return [token for piece in pieces for token in self.ids_of(piece)]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Encode many texts; ``encode`` of each."""
        return [self.encode(text) for text in texts]

    def normalise(self, text: str) -> str:
        """Return the pieces that stand for ``text``, spaces between.

        Splitting this at spaces and looking each piece up in ``tokenizer.model`` gives the ids
        of ``encode`` (subwords aside). One sentencepiece call on the whole line does too, except
        that it merges neighbouring unknown words into one ``<unk>``.
        """
        return " ".join(self._stand_ins(text))

    def _stand_ins(self, text: str) -> Iterator[str]:
        for piece in self.normalisation.pieces(text):
            known = self.word_id(piece)
            yield piece if known in (None, self.unk_id) else self.words[known]

    def word_id(self, piece: str) -> int | None:
        """Return the id of the one piece that stands for this one, or None."""
        piece = self.normalisation.canonical(piece)
        known = self._ids.get(piece)
        if known is None and self._folded:
            known = self._ids.get(piece.lower(), self._folded.get(piece.lower()))
        return known

    def shown(self, id: int) -> str:
        """Return a word as a person is shown it inside of a sentence: ``London`` for ``london``."""
        return self.forms.get(self.words[id], self.words[id])

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of ``text`` that the vocabulary lacks; it may spell them by subwords."""
        return self._unknown_words(text)

    def _unknown_in_part(self, part: str) -> list[str]:
        lacks = (None, self.unk_id)
        pieces = self.normalisation.pieces(part)
        return [piece for piece in pieces if is_word(piece) and self.word_id(piece) in lacks]

    def ids_of(self, piece: str) -> tuple[int, ...]:
        """Return the ids that stand for one piece of a text: several where subwords spell it."""
        known = self._ids.get(piece)
        return self._resolved[piece] if known is None else (known,)

    def _look_up(self, piece: str) -> tuple[int, ...]:
        known = self.word_id(piece)
        if known is not None:
            return (known,)
        if self._subwords is None or not is_word(piece) or piece in self._unread:
            return (self.unk_id,)
        return tuple(self._first_subword + i - 1 for i in self._subwords.encode(piece))

    def decode(self, ids: Sequence[int]) -> str:
        """Return readable text; controls vanish, marks join the words that they belong to.

        ``encode`` reads what it encoded as the same ids again: no mark joins what would be cut
        otherwise with it.
        """
        shown: list[str] = []
        local: list[int] = []

        def flush() -> None:
            if local:
                shown.append(self._subwords.decode(local))
                local.clear()

        for i in map(int, ids):
            kind = self.kinds[i]
            if kind == "subword":
                if self.words[i].startswith("▁"):
                    flush()
                local.append(i - self._first_subword + 1)
                continue
            flush()
            if kind != "control" or i == self.unk_id:
                shown.append(self.words[i])
        flush()
        return self._joined(shown)

    def _joined(self, pieces: Sequence[str]) -> str:
        """Put pieces together, with spaces where no mark joins them."""
        parts: list[str] = []
        last: list[str] = []  # the pieces of the last part
        apart = _GUILLEMETS if language_of(self.locales[0]) == "fr" else frozenset()
        after, before = _AFTER_WORD - apart, _BEFORE_WORD - apart
        for piece in pieces:
            joins = 0 < len(last) < _MOST_JOINED and bool(
                piece in after or last[-1] in before or _ELIDED.search(last[-1])
            )
            if joins and self.normalisation.pieces(parts[-1] + piece) == [*last, piece]:
                parts[-1] += piece
                last.append(piece)
            else:
                parts.append(piece)
                last = [piece]
        return " ".join(parts)
