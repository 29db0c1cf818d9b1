"""What a phone needs to know of words: the vocabulary, how text becomes ids, and the block list."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.export.bundle import BLOCKLIST, TOKENIZER
from pfl_lm.text import letters
from pfl_lm.text.compressed import open_text
from pfl_lm.text.letters import same_letters
from pfl_lm.text.normalisation import is_word
from pfl_lm.text.pieces import is_emoji, without_look
from pfl_lm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class BlockList:
    """What must never be suggested: what is no word, and every form of the listed words' letters.

    Attributes:
        listed: the whole list, sorted, each word once. Words outside the vocabulary stay: a
            keyboard may learn them from its owner.
        words: those of the vocabulary that are blocked, as it writes them.
        ids: their ids, and those of everything that is no word: marks, masks, pieces, controls.
        phrases: entries of several words; none of these can be blocked as a whole.
        emoji_ids: emoji that a keyboard may show in a place of their own; no variant of a listed
            emoji is among them.
    """

    listed: tuple[str, ...]
    words: tuple[str, ...]
    ids: tuple[int, ...]
    phrases: tuple[str, ...] = ()
    emoji_ids: tuple[int, ...] = ()

    @classmethod
    def read(cls, path: Path | None, tokenizer: Tokenizer) -> BlockList:
        """Read a text file with a word on each line; None blocks only what is no word.

        Raises:
            ValueError: no such file, an empty or unreadable one, a list that has no word of the
                vocabulary, or one that blocks all of them.
        """
        listed = () if path is None else _entries(Path(path))
        phrases = tuple(entry for entry in listed if len(_words_of(entry, tokenizer)) > 1)
        blocked = blocked_letters(listed, tokenizer)
        listed_emoji = {without_look(entry) for entry in listed if is_emoji(entry)}
        words, ids, emoji = [], [], []
        for id, (word, kind) in enumerate(zip(tokenizer.words, tokenizer.kinds, strict=True)):
            if kind == "word" and same_letters(word) in blocked:
                words.append(word)
            if kind != "word" or same_letters(word) in blocked:
                ids.append(id)
            if kind == "mark" and is_emoji(word) and without_look(word) not in listed_emoji:
                emoji.append(id)
        if listed and not words and not listed_emoji:
            raise ValueError(
                f"--block-list {path}: none of its words is in the vocabulary; it should hold a "
                "word on each line"
            )
        if len(ids) == tokenizer.vocabulary_size:
            raise ValueError(f"--block-list {path}: it blocks every word: nothing can be suggested")
        return cls(listed, tuple(sorted(words)), tuple(ids), phrases, tuple(emoji))

    @property
    def text(self) -> str:
        return "".join(f"{entry}\n" for entry in self.listed)


def blocked_letters(listed: Iterable[str], tokenizer: Tokenizer) -> frozenset[str]:
    """Return what all forms of the listed words' letters share (``text.letters``)."""
    words_of = (_words_of(entry, tokenizer) for entry in listed)
    return frozenset(same_letters(words[0]) for words in words_of if len(words) == 1)


def _entries(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such file"
        raise ValueError(f"--block-list {path}: {what}")
    try:
        with open_text(path) as file:
            words = {line.strip() for line in file} - {""}
    except ValueError as error:
        raise ValueError(f"--block-list {error}") from error
    if not words:
        raise ValueError(
            f"--block-list {path}: it holds no word; leave the option out to block none"
        )
    return tuple(sorted(words))


def _words_of(entry: str, tokenizer: Tokenizer) -> list[str]:
    return [piece for piece in tokenizer.normalisation.pieces(entry) if is_word(piece)]


def write_vocabulary(folder: Path, tokenizer: Tokenizer, blocked: BlockList) -> dict[str, Any]:
    """Write the tokenizer and the block list into a bundle; return what the index says of them."""
    tokenizer.save(folder / TOKENIZER)
    (folder / BLOCKLIST).write_text(blocked.text, encoding="utf-8")
    return describe_vocabulary(tokenizer, blocked)


def describe_vocabulary(tokenizer: Tokenizer, blocked: BlockList) -> dict[str, Any]:
    """Return what the index says of a tokenizer and a block list."""
    return {
        "size": tokenizer.vocabulary_size,
        "locale": tokenizer.manifest.get("locale", ""),
        "digest": tokenizer.digest,
        "provenance": tokenizer.provenance,
        "licence": tokenizer.manifest.get("licence", ""),
        "special_ids": {
            f"{name}_id": getattr(tokenizer, f"{name}_id") for name in ("pad", "unk", "bos", "eos")
        },
        "normalisation": tokenizer.normalisation.in_browser(),
        "written_forms": len(tokenizer.forms),
        "emoji_ids": list(blocked.emoji_ids),
        "blocked": {
            "words": len(blocked.words),
            "listed": len(blocked.listed),
            "phrases": len(blocked.phrases),
            "same_letters": letters.describe(),
            "sha256": hashlib.sha256(blocked.text.encode()).hexdigest(),
        },
    }
