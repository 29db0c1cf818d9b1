"""From a public source of words to the files of a tokenizer."""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pfl_lm.files import sha256_of
from pfl_lm.text import wordfreq_list, written_forms
from pfl_lm.text.discovered import DiscoveredWords
from pfl_lm.text.normalisation import PUNCTUATION, UNKNOWN, Normalisation, is_word, marks_of
from pfl_lm.text.pieces import is_emoji, is_half_an_emoji
from pfl_lm.text.readers import read_texts
from pfl_lm.text.tokenizer import CONTROLS, Tokenizer
from pfl_lm.text.tokenizer_assemble import Row, assemble
from pfl_lm.text.tokenizer_grow import grow_tokenizer
from pfl_lm.text.tokenizer_recipe import TokenizerRecipe
from pfl_lm.text.word_counts import count_words
from pfl_lm.text.wordfreq_list import language_of
from pfl_lm.text.written_forms import WrittenFormsSource

# What a word list cannot tell: stated shares of running text, so that the public unigram gives
# every id a sensible mass. Text as the source is counted instead.
WORDS_PER_MESSAGE = 10
PLACEHOLDER_SHARE = 0.0005  # each
PUNCTUATION_SHARE = 0.12  # all marks together, falling as 1 / rank
EMOJI_SHARE = 0.005  # all emoji together; books and encyclopaedias, most of a list, have none
_SUBWORD_SAMPLE = 50_000  # most frequent words to learn subwords from; more adds only time
_SUBWORD_TEXT = 1_000_000  # their counts add up to about so many at most: a word is read as often


class NoWrittenForms(ValueError):
    """Public text that does not tell how words are written: it has hardly a capital."""


def build_tokenizer(
    recipe: TokenizerRecipe,
    destination: Path,
    watch: Callable[[str], None] = lambda step: None,
    discovered: DiscoveredWords | None = None,
) -> Tokenizer:
    """Build the vocabulary that ``recipe`` states and write its folder.

    The same recipe and source give the same bytes, and so the same digest.

    Args:
        watch: told what is done next, before each step that may take seconds.
        discovered: the words of ``source.path``, where its kind is ``discovered``, as
            ``queries.found.open_discovered`` returns them once the ledger is seen to have paid.

    Raises:
        ValueError: the source is unreadable or too small, or ``destination`` exists;
            ``NoWrittenForms``: the text of ``written_forms`` has no capitals to learn from.
    """
    destination = Path(destination)
    if destination.exists():
        raise ValueError(f"{destination} exists already; remove it or choose another destination")
    source = recipe.source
    if source.kind == "discovered":
        tokenizer = _grown(recipe, discovered)
        tokenizer.save(destination)
        return tokenizer
    normalisation = recipe.normalisation()
    lists = f"wordfreq for {' and '.join(recipe.shares)}"
    watch(f"counting the words of {source.path or lists}")
    counts = count_words(recipe, normalisation)
    subword_size = recipe.subwords.size if recipe.subwords else 0
    marks = dict.fromkeys(mark for tag in recipe.shares for mark in marks_of(language_of(tag)))
    rows, left_over = choose_rows(counts, normalisation, recipe.size - subword_size, list(marks))
    subword_model = None
    if recipe.subwords:
        watch(f"learning {subword_size:,} subwords from {len(left_over):,} words")
        subword_model, subwords = _train_subwords(left_over, subword_size)
        rows += subwords
        counted = sum(count for _, kind, count in rows if kind == "subword")
        rows[1] = (*rows[1][:2], max(0, rows[1][2] - counted))
    forms = None
    if recipe.written_forms:
        watch(f"learning how words are written from {recipe.written_forms.path}")
        forms = _learn_forms(recipe.written_forms, normalisation, rows, recipe.locale)
    watch(f"writing {len(rows):,} ids")
    only_of = _only_of(recipe.shares, normalisation, rows) if recipe.second_locale else ()
    tokenizer = assemble(rows, normalisation, _about(recipe), subword_model, forms, only_of)
    tokenizer.save(destination)
    return tokenizer


def _grown(recipe: TokenizerRecipe, discovered: DiscoveredWords | None) -> Tokenizer:
    """Add discovered words to the base of a recipe."""
    if discovered is None:
        raise ValueError(
            "kind = 'discovered': hand over the words with their ledger (discovered=); "
            "`pfl-lm tokenizer build` reads both from source.path"
        )
    assert recipe.source.base is not None
    return grow_tokenizer(recipe, Tokenizer.open(recipe.source.base), discovered)


def choose_rows(
    counts: Counter[str],
    normalisation: Normalisation,
    size: int,
    marks: Sequence[str] = PUNCTUATION,
) -> tuple[list[Row], Counter[str]]:
    """Lay out ids 0 … size−1; return the rows and the words that found no place.

    ``counts`` is keyed by canonical piece; the key ``</s>`` counts messages, and is estimated
    where absent. What is left over becomes the mass of ``<unk>``. ``marks``, by falling frequency,
    have ids wherever punctuation is kept.
    """
    counted = "</s>" in counts
    if not counted:
        counts = counts | _emoji_in_messages(counts)
    words = [
        (piece, n)
        for piece, n in counts.items()
        if is_word(piece) or (_symbol(piece) and piece not in marks)
    ]
    words.sort(key=lambda item: (-item[1], item[0]))
    running = sum(n for _, n in words)
    messages = counts.get("</s>", running // WORDS_PER_MESSAGE)
    fixed: list[Row] = [(name, "control", 0) for name in CONTROLS]
    for name in normalisation.placeholders:
        fixed.append((name, "placeholder", _stated(counts, name, PLACEHOLDER_SHARE * running)))
    if normalisation.punctuation == "keep":
        harmonic = sum(1 / rank for rank in range(1, len(marks) + 1))
        for rank, mark in enumerate(marks, 1):
            share = PUNCTUATION_SHARE / harmonic / rank
            fixed.append((mark, "mark", counts[mark] if counted else round(share * running)))
    room = size - len(fixed)
    if len(words) < room:
        raise ValueError(
            f"size: the source holds {len(words):,} usable words and {room:,} are asked for; "
            "lower size or use a larger source"
        )
    left_over = Counter(dict(words[room:]))
    unknown = left_over.total() + counts.get(UNKNOWN, 0)
    fixed[1:4] = [("<unk>", "control", unknown)] + [(c, "control", messages) for c in CONTROLS[2:]]
    return fixed + [(w, "word" if is_word(w) else "mark", n) for w, n in words[:room]], left_over


def _only_of(shares: Iterable[str], normalisation: Normalisation, rows: list[Row]) -> list[str]:
    """Return for each row the locale that its word belongs to alone; empty: it belongs to all.

    A locale has as many words as there are rows of words: the first ones of its list. A word that
    only both lists together made frequent enough belongs to all.
    """
    most = sum(kind == "word" for _, kind, _ in rows)
    only: dict[str, str] = {}
    for locale in shares:
        pieces = (
            p for word, _ in wordfreq_list.entries(locale) for p in normalisation.pieces(word)
        )
        words = _once(filter(is_word, map(normalisation.canonical, pieces)))
        for word in islice(words, most):
            only[word] = "" if word in only else locale
    return [only.get(piece, "") if kind == "word" else "" for piece, kind, _ in rows]


def _once(words: Iterable[str]) -> Iterator[str]:
    """Yield each word where it first stands."""
    known: set[str] = set()
    for word in words:
        if word not in known:
            known.add(word)
            yield word


def _learn_forms(
    source: WrittenFormsSource, normalisation: Normalisation, rows: list[Row], locale: str
) -> bytes:
    if not source.path.exists():
        raise ValueError(f"written_forms.path: {source.path} does not exist")
    words = [piece for piece, kind, _ in rows if kind == "word"]
    texts = read_texts(source.path, source.text_field)
    forms = written_forms.learn(texts, normalisation, words, locale)
    if not forms:
        raise NoWrittenForms(
            f"written_forms.path: {source.path} does not tell how words are written: no word of "
            "the vocabulary has capitals five times inside of its sentences"
        )
    return written_forms.table(forms)


def _emoji_in_messages(counts: Counter[str]) -> Counter[str]:
    """Return a list's emoji with counts that sum up to their share of messages."""
    emoji = Counter({piece: n for piece, n in counts.items() if is_emoji(piece)})
    if not emoji:
        return emoji
    factor = EMOJI_SHARE * (counts.total() - emoji.total()) / emoji.total()
    return Counter({piece: round(n * factor) for piece, n in emoji.items()})


def _stated(counts: Counter[str], piece: str, otherwise: float) -> int:
    return counts[piece] if "</s>" in counts else round(otherwise)


def _symbol(piece: str) -> bool:
    """Say whether a piece is a mark outside ASCII, such as an emoji, that text brought along."""
    return not (piece.isascii() or piece.isspace() or is_half_an_emoji(piece))


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
    if (forms := recipe.written_forms) is not None:
        about["written_forms"] = {
            "provenance": forms.provenance,
            "licence": forms.licence,
            "file": forms.path.name,
            "sha256": sha256_of(forms.path),
        }
    if source.kind == "wordfreq":
        from importlib.metadata import version

        about["source"]["version"] = version("wordfreq")
        about["notes"] = [note for tag in recipe.shares for note in wordfreq_list.notes(tag)]
    if recipe.second_locale is not None:
        about["shares"] = recipe.shares
    return about


def _train_subwords(words: Counter[str], size: int) -> tuple[bytes, list[Row]]:
    """Train the unigram model on the public words that found no place of their own.

    sentencepiece lays out a word as often as it counts: a language's counts as they are, 50 million
    of Ukrainian words, take 15 GB.
    """
    import sentencepiece

    if not words:
        raise ValueError("subwords: the source holds no word beyond the vocabulary to learn from")
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "words.tsv"
        frequent = Counter(dict(words.most_common(_SUBWORD_SAMPLE)))
        shorter = min(1.0, _SUBWORD_TEXT / max(1, frequent.total()))
        lines = (f"{word}\t{max(1, round(n * shorter))}\n" for word, n in frequent.items())
        table.write_text("".join(lines), encoding="utf-8")
        try:
            sentencepiece.SentencePieceTrainer.train(
                input=str(table), input_format="tsv", model_writer=model, model_type="unigram",
                vocab_size=size + 1, byte_fallback=True, normalization_rule_name="identity",
                unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1, num_threads=1, minloglevel=2,
            )  # fmt: skip
        except (RuntimeError, OSError) as error:
            raise ValueError(f"subwords.size = {size}: {error}") from error
    content = _without_its_source(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    counts: Counter[int] = Counter()
    for word, count in words.items():
        for piece in processor.encode(word):
            counts[piece] += count
    return content, [
        (processor.id_to_piece(i), "subword", counts[i]) for i in range(1, len(processor))
    ]


def _without_its_source(model: bytes) -> bytes:
    """Return a sentencepiece model without the name of the temporary file that it learnt from."""
    from sentencepiece import sentencepiece_model_pb2

    schema: Any = sentencepiece_model_pb2  # generated code without types
    parsed = schema.ModelProto.FromString(model)
    parsed.trainer_spec.ClearField("input")
    content: bytes = parsed.SerializeToString(deterministic=True)
    return content
