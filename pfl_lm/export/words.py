"""What a phone needs to know of words: the vocabulary, how text becomes ids, and the block list."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.export.bundle import BLOCKLIST, TOKENIZER
from pfl_lm.language.normalisation import UNKNOWN, Normalisation, combining_marks
from pfl_lm.language.tokenizer import Tokenizer


@dataclass(frozen=True)
class BlockList:
    """Words that the model may know and must never suggest.

    Attributes:
        words: as the vocabulary writes them, sorted, each once.
        ids: their ids, and those of everything that is no word.
    """

    words: tuple[str, ...]
    ids: tuple[int, ...]

    @classmethod
    def read(cls, path: Path | None, tokenizer: Tokenizer) -> BlockList:
        """Read a text file with a word on each line; None blocks only what is no word.

        Raises:
            ValueError: no such file, or none of its words is in the vocabulary.
        """
        listed: set[str] = set()
        if path is not None:
            if not Path(path).is_file():
                raise ValueError(f"--block-list {path}: no such file")
            listed = {line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()}
            listed -= {""}
        ids, words = set(tokenizer.specials), set()
        for id, kind in enumerate(tokenizer.kinds):
            if kind == "subword":
                ids.add(id)
        for word in listed:
            found = tokenizer.encode(word)
            if len(found) == 1 and tokenizer.kinds[found[0]] == "word":
                ids.add(found[0])
                words.add(tokenizer.words[found[0]])
        if listed and not words:
            raise ValueError(
                f"--block-list {path}: none of its words is in the vocabulary; it should hold a "
                "word on each line"
            )
        return cls(tuple(sorted(words)), tuple(sorted(ids)))

    @property
    def text(self) -> str:
        return "".join(f"{word}\n" for word in self.words)


def write_words(folder: Path, tokenizer: Tokenizer, blocked: BlockList) -> dict[str, Any]:
    """Write the tokenizer and the block list into a bundle; return what the index says of them."""
    tokenizer.save(folder / TOKENIZER)
    (folder / BLOCKLIST).write_text(blocked.text, encoding="utf-8")
    described = tokenizer.normalisation.describe()
    return {
        "size": tokenizer.vocabulary_size,
        "locale": tokenizer.manifest.get("locale", ""),
        "digest": tokenizer.digest,
        "provenance": tokenizer.manifest.get("provenance", ""),
        "licence": tokenizer.manifest.get("licence", ""),
        "special_ids": {
            f"{name}_id": getattr(tokenizer, f"{name}_id") for name in ("pad", "unk", "bos", "eos")
        },
        "normalisation": described | {"pattern_ecmascript": ecmascript(tokenizer.normalisation)},
        "blocked": {
            "words": len(blocked.words),
            "sha256": hashlib.sha256(blocked.text.encode()).hexdigest(),
        },
    }


def ecmascript(rules: Normalisation) -> str:
    """Return the pattern whose matches are the pieces, as a browser reads it (flags ``gu``)."""
    letters = rf"(?:[\p{{L}}\p{{N}}][{combining_marks()}]*)+"
    masks = "|".join(re.sub(r"[^\w<>]", "", name) for name in (*rules.placeholders, UNKNOWN))
    alternatives = [masks, r"\p{Nd}+(?:[.,:]\p{Nd}+)+", rf"{letters}(?:'{letters})*"]
    if rules.punctuation == "keep":
        alternatives += [r"\.\.+", rf"[^\p{{L}}\p{{N}}_\s{combining_marks()}]", "_"]
    return "|".join(alternatives)
