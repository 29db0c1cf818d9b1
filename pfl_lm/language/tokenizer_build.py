"""From a public source of words to the files of a tokenizer."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.files import sha256_of
from pfl_lm.language.compressed import open_text
from pfl_lm.language.normalisation import PUNCTUATION, Normalisation, is_word
from pfl_lm.language.readers import read_texts
from pfl_lm.language.tokenizer import (
    CONTROLS,
    MANIFEST_FILE,
    MODEL_FILE,
    SUBWORD_FILE,
    VOCABULARY_FILE,
    Tokenizer,
    TokenizerRecipe,
    VocabularySource,
)

# What a word list cannot tell: stated shares of running text, so that the public unigram gives
# every id a sensible mass. Text as the source is counted instead.
WORDS_PER_MESSAGE = 10
PLACEHOLDER_SHARE = 0.0005  # each
PUNCTUATION_SHARE = 0.12  # all marks together, falling as 1 / rank
_WORDFREQ_TOTAL = 10**9
_SUBWORD_SAMPLE = 50_000  # most frequent words to learn subwords from; more adds only time

Row = tuple[str, str, int]  # piece, kind, count


def build_tokenizer(recipe: TokenizerRecipe, destination: Path) -> Tokenizer:
    """Build the vocabulary that ``recipe`` states and write its folder.

    The same recipe and source give the same bytes, and so the same digest.

    Raises:
        ValueError: the source is unreadable or too small, or ``destination`` exists.
    """
    destination = Path(destination)
    if destination.exists():
        raise ValueError(f"{destination} exists already; remove it or choose another destination")
    normalisation = recipe.normalisation()
    counts = _count(recipe, normalisation)
    subword_size = recipe.subwords.size if recipe.subwords else 0
    rows, left_over = choose_rows(counts, normalisation, recipe.size - subword_size)
    subword_model = None
    if recipe.subwords:
        subword_model, subwords = _train_subwords(left_over, subword_size)
        rows += subwords
        counted = sum(count for _, kind, count in rows if kind == "subword")
        rows[1] = (*rows[1][:2], max(0, rows[1][2] - counted))
    tokenizer = assemble(rows, normalisation, _about(recipe), subword_model)
    tokenizer.save(destination)
    return tokenizer


def assemble(
    rows: list[Row],
    normalisation: Normalisation,
    about: dict[str, Any],
    subword_model: bytes | None = None,
) -> Tokenizer:
    """Make a tokenizer in memory from its rows (by id); ``about`` goes into the manifest."""
    files = {
        MODEL_FILE: _sentencepiece_words([row for row in rows if row[1] != "subword"]),
        VOCABULARY_FILE: _vocabulary_table(rows),
    }
    if subword_model is not None:
        files[SUBWORD_FILE] = subword_model
    manifest = about | {
        "size": len(rows),
        "normalisation": normalisation.describe(),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    files[MANIFEST_FILE] = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
    return Tokenizer(files)


def choose_rows(
    counts: Counter[str], normalisation: Normalisation, size: int
) -> tuple[list[Row], Counter[str]]:
    """Lay out ids 0 … size−1; return the rows and the words that found no place.

    ``counts`` is keyed by canonical piece; the key ``</s>`` counts messages, and is estimated
    where absent. What is left over becomes the mass of ``<unk>``.
    """
    words = [(piece, n) for piece, n in counts.items() if is_word(piece) or _symbol(piece)]
    words.sort(key=lambda item: (-item[1], item[0]))
    running = sum(n for _, n in words)
    messages = counts.get("</s>", running // WORDS_PER_MESSAGE)
    counted = "</s>" in counts
    fixed: list[Row] = [(name, "control", 0) for name in CONTROLS]
    for name in normalisation.placeholders:
        fixed.append((name, "placeholder", _stated(counts, name, PLACEHOLDER_SHARE * running)))
    if normalisation.punctuation == "keep":
        harmonic = sum(1 / rank for rank in range(1, len(PUNCTUATION) + 1))
        for rank, mark in enumerate(PUNCTUATION, 1):
            share = PUNCTUATION_SHARE / harmonic / rank
            fixed.append((mark, "mark", counts[mark] if counted else round(share * running)))
    room = size - len(fixed)
    if len(words) < room:
        raise ValueError(
            f"size: the source holds {len(words):,} usable words and {room:,} are asked for; "
            "lower size or use a larger source"
        )
    left_over = Counter(dict(words[room:]))
    unknown = left_over.total() + counts.get("<unk>", 0)
    fixed[1:4] = [("<unk>", "control", unknown)] + [(c, "control", messages) for c in CONTROLS[2:]]
    return fixed + [(w, "word" if is_word(w) else "mark", n) for w, n in words[:room]], left_over


def _stated(counts: Counter[str], piece: str, otherwise: float) -> int:
    return counts[piece] if "</s>" in counts else round(otherwise)


def _symbol(piece: str) -> bool:
    """Say whether a piece is a mark outside ASCII, such as an emoji, that text brought along."""
    return len(piece) == 1 and not piece.isascii() and not piece.isspace()


def _count(recipe: TokenizerRecipe, normalisation: Normalisation) -> Counter[str]:
    """Count canonical pieces in the source; a list's entry that is no single word is left out."""
    source = recipe.source
    if source.kind in ("text", "private_text"):
        return _count_text(source, normalisation)
    entries = _wordfreq(recipe.locale) if source.kind == "wordfreq" else _word_list(source)
    counts: Counter[str] = Counter()
    for word, count in entries:
        pieces = normalisation.pieces(word)
        if len(pieces) == 1 and is_word(pieces[0]):
            piece = normalisation.canonical(pieces[0])
            if is_word(piece):
                counts[piece] += count
    return counts


def _count_text(source: VocabularySource, normalisation: Normalisation) -> Counter[str]:
    raw: Counter[str] = Counter()
    messages = 0
    for text in read_texts(_existing(source), source.text_field):
        pieces = normalisation.pieces(text)
        raw.update(pieces)
        messages += bool(pieces)
    counts: Counter[str] = Counter()
    for piece, count in raw.items():
        counts[normalisation.canonical(piece)] += count
    counts["</s>"] = messages
    return counts


def _word_list(source: VocabularySource) -> Iterator[tuple[str, int]]:
    path = _existing(source)
    delimiter = "," if ".csv" in path.suffixes else "\t"
    with open_text(path) as file:
        table = csv.DictReader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        for column in (source.word_column, source.count_column):
            if column not in (table.fieldnames or []):
                raise ValueError(
                    f"{path}: no column {column!r}; its columns are {table.fieldnames}"
                )
        for row in table:
            count = row[source.count_column] or ""
            if not count.strip().isdigit():
                raise ValueError(f"{path}:{table.line_num}: count {count!r} is no whole number")
            yield row[source.word_column], int(count)


def _wordfreq(locale: str) -> Iterable[tuple[str, int]]:
    from wordfreq import available_languages, get_frequency_dict

    language = locale.replace("-", "_").split("_")[0]
    known = available_languages("best")
    if language not in known:  # wordfreq itself would take the nearest language instead
        raise ValueError(f"locale: wordfreq has no list for {language!r}, only {' '.join(known)}")
    frequencies = get_frequency_dict(language, wordlist="best")
    return [(word, round(share * _WORDFREQ_TOTAL)) for word, share in frequencies.items()]


def _existing(source: VocabularySource) -> Path:
    if source.path is None or not source.path.exists():
        raise ValueError(f"source.path: {source.path} does not exist")
    return source.path


def _about(recipe: TokenizerRecipe) -> dict[str, Any]:
    """Return what the manifest keeps of the recipe: nothing that differs between machines."""
    source = recipe.source
    about: dict[str, Any] = {
        "locale": recipe.locale,
        "provenance": source.provenance,
        "licence": source.licence,
        "source": {"kind": source.kind},
        "breaks_guarantee": source.breaks_guarantee,
    }
    if source.path is not None:
        about["source"] |= {"file": source.path.name, "sha256": sha256_of(source.path)}
    if source.kind == "wordfreq":
        from importlib.metadata import version

        about["source"]["version"] = version("wordfreq")
    return about


def _vocabulary_table(rows: list[Row]) -> bytes:
    lines = ["id\tpiece\tkind\tcount"]
    lines += [f"{i}\t{piece}\t{kind}\t{count}" for i, (piece, kind, count) in enumerate(rows)]
    return ("\n".join(lines) + "\n").encode()


def _sentencepiece_words(rows: list[Row]) -> bytes:
    """Write the rows as a sentencepiece model of type WORD, piece i with id i.

    Built directly, not trained: training would reorder ties and drop what its filters dislike.
    """
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2  # generated code without types
    model = schema.ModelProto()
    kinds = schema.ModelProto.SentencePiece
    counts = np.array([row[2] for row in rows], dtype=np.float64) + 0.5
    scores = np.log(counts / counts.sum())
    for (piece, kind, _), score in zip(rows, scores, strict=True):
        control = kinds.UNKNOWN if piece == "<unk>" else kinds.CONTROL
        is_control = kind == "control"
        model.pieces.add(
            piece=piece if is_control else "▁" + piece,
            score=float(score),
            type=control if is_control else kinds.NORMAL,
        )
    trainer = model.trainer_spec
    trainer.model_type = schema.TrainerSpec.WORD
    trainer.vocab_size = len(rows)
    trainer.pad_id, trainer.unk_id, trainer.bos_id, trainer.eos_id = range(4)
    trainer.pad_piece, trainer.unk_piece, trainer.bos_piece, trainer.eos_piece = CONTROLS
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    model.normalizer_spec.escape_whitespaces = True
    return model.SerializeToString(deterministic=True)


def _train_subwords(words: Counter[str], size: int) -> tuple[bytes, list[Row]]:
    """Train the unigram model on the public words that found no place of their own."""
    import sentencepiece

    if not words:
        raise ValueError("subwords: the source holds no word beyond the vocabulary to learn from")
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "words.tsv"
        frequent = words.most_common(_SUBWORD_SAMPLE)
        lines = (f"{word}\t{max(1, count)}\n" for word, count in frequent)
        table.write_text("".join(lines), encoding="utf-8")
        try:
            sentencepiece.SentencePieceTrainer.train(
                input=str(table), input_format="tsv", model_writer=model, model_type="unigram",
                vocab_size=size + 1, byte_fallback=True, normalization_rule_name="identity",
                unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1, num_threads=1, minloglevel=2,
            )  # fmt: skip
        except (RuntimeError, OSError) as error:
            raise ValueError(f"subwords.size = {size}: {error}") from error
    content = model.getvalue()
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    counts: Counter[int] = Counter()
    for word, count in words.items():
        for piece in processor.encode(word):
            counts[piece] += count
    return content, [
        (processor.id_to_piece(i), "subword", counts[i]) for i in range(1, len(processor))
    ]
