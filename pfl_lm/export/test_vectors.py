"""Test vectors: inputs with the outputs to expect, for the mobile team to run on the phone.

The inputs are random words of the public vocabulary, so the file holds nobody's text. For every
file of a bundle it states what that very file gave here, with a tolerance for other processors;
``reference`` is what the trained model gives in the simulator's own code. A file passes where, at
every key of every text,

* each of the k scores lies within the tolerance of the score expected at its place, and
* each expected word that leads the k-th by more than twice the tolerance is suggested.

Big inputs and outputs (of the training graphs) lie as raw little-endian files beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export.bundle import VECTOR_FILES
from pfl_lm.export.forward import AWAY
from pfl_lm.export.signature import Arrays, ExportGraph, Runner, Signature
from pfl_lm.export.trained import TrainedModel
from pfl_lm.models.own_words import OwnWords, OwnWordsRule
from pfl_lm.streams import stream
from pfl_lm.text.normalisation import beginnings
from pfl_lm.text.tokenizer import Tokenizer

TOLERANCE = {"fp32": 1e-3, "fp16": 0.05, "int8": 0.25, "int4": 0.5}  # of a score, in nats
GRADIENT_TOLERANCE = 1e-5
_TEXTS, _WORDS, _LETTERS = 6, 6, 2


@dataclass(frozen=True)
class Key:
    """One call: a word, or the letters typed after it."""

    token: int
    typed: str


@dataclass(frozen=True)
class Text:
    """Words typed one after the other, and the first letters of the last one's successor."""

    keys: tuple[Key, ...]


def invent_texts(
    tokenizer: Tokenizer, blocked: frozenset[int], longest: int | None, seed: int = 0
) -> list[Text]:
    """Draw texts from the public unigram; what is never suggested is not typed either.

    Args:
        longest: how many ids the model reads, ``<s>`` among them; None: any number.
    """
    random = stream(seed, "test vectors")
    chances = tokenizer.unigram.copy()
    chances[list(blocked)] = 0.0
    texts = []
    for _ in range(_TEXTS):
        words = random.choice(len(chances), _WORDS, p=chances / chances.sum())
        keys = [Key(Tokenizer.bos_id, ""), *(Key(int(word), "") for word in words[:-1])][:longest]
        letters = tokenizer.words[words[-1]][:_LETTERS]
        keys += [Key(keys[-1].token, letters[: n + 1]) for n in range(len(letters))]
        texts.append(Text(tuple(keys)))
    return texts


class PrefixMask:
    """The mask of the words that begin with some letters, as the app has to make it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._words = tokenizer.words
        self._by_letters: dict[str, np.ndarray] = {}

    def __call__(self, typed: str) -> np.ndarray:
        """Return float32[1, V]: 0 for the words that begin with ``typed``, else −10⁴.

        Capitals do not count, and a final sigma at the end of ``typed`` stands for any sigma.
        """
        if typed not in self._by_letters:
            begin = beginnings(typed.lower())
            keep = [word.lower().startswith(begin) for word in self._words]
            mask = np.where(keep, 0.0, AWAY).astype(np.float32)[None]
            self._by_letters[typed] = mask
        return self._by_letters[typed]


def type_text(
    run: Runner, signature: Signature, start: Arrays, text: Text, mask: PrefixMask
) -> list[dict[str, Any]]:
    """Run a text's keys through ``predict``; return words and scores for each."""
    given, last, answers = dict(start), None, []
    for key in text.keys:
        if not key.typed and last is not None:  # a whole word: now the state moves
            given |= {i: last[o] for o, i in signature.state.items()}
        outputs = run(**given | {"token": np.array([key.token], np.int32), "mask": mask(key.typed)})
        if not key.typed:
            last = outputs
        answers.append(_answer(outputs["words"][0], outputs["scores"][0]))
    return answers


def differences(
    answers: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float
) -> str:
    """Say where a file's answers to one text are not the expected ones, or nothing."""
    for place, (here, there) in enumerate(zip(answers, expected, strict=True)):
        distances = np.abs(np.subtract(here["scores"], there["scores"]))
        away = np.minimum(here["scores"], there["scores"]) < AWAY / 2
        distances[away] = 0.0  # fewer words than places: any may fill them
        if not (distances <= tolerance).all():
            return (
                f"key {place}: a score is {np.nanmax(distances):.3g} away, {tolerance:g} is allowed"
            )
        leading = [
            word
            for word, score in zip(there["words"], there["scores"], strict=True)
            if score > there["scores"][-1] + 2 * tolerance
        ]
        if missed := set(leading) - set(here["words"]):
            return f"key {place}: word {min(missed)} is not suggested"
    return ""


def predict_vectors(
    texts: list[Text],
    trained: TrainedModel,
    graph: ExportGraph,
    files: Mapping[str, Runner],
    mask: PrefixMask,
) -> dict[str, Any]:
    """Return the part of the vectors for ``predict``: keys, the model's answers, each file's."""
    best = next(tensor.size for tensor in graph.outputs if tensor.name == "words")
    typed = {
        name: [type_text(run, graph.signature, graph.start, text, mask) for text in texts]
        for name, run in files.items()
    }
    return {
        "texts": [[{"token": k.token, "typed": k.typed} for k in text.keys] for text in texts],
        "reference": [trained_answers(trained, text, best, mask) for text in texts],
        "files": typed,
        "tolerance": TOLERANCE,
    }


def trained_answers(
    trained: TrainedModel, text: Text, best: int, mask: PrefixMask
) -> list[dict[str, Any]]:
    """Return what the trained model suggests at each key of a text, as :func:`type_text` does."""
    ids = [key.token for key in text.keys if not key.typed]
    logits, read, answers = trained.logits(np.array(ids)), 0, []
    for key in text.keys:
        read += not key.typed
        words, scores = trained.best(logits[read - 1], best, mask(key.typed)[0])
        answers.append(_answer(words, scores))
    return answers


def _answer(words: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    return {"words": words.tolist(), "scores": [round(float(score), 5) for score in scores]}


def text_vectors(tokenizer: Tokenizer, texts: list[Text]) -> list[dict[str, Any]]:
    """Return texts with their ids, so that the app's own tokenizer can be tested."""
    spoken = [" ".join(tokenizer.words[k.token] for k in t.keys[1:] if not k.typed) for t in texts]
    marked = [f"{text.title()}, 10:30 — ‘{text}’!" for text in spoken]
    return [{"text": text, "ids": tokenizer.encode(text)} for text in spoken + marked]


def own_words_vectors(texts: list[Text], vocabulary_size: int) -> dict[str, Any]:
    """Return messages, each typed twice, and what their counts then make of a prediction."""
    once = [[k.token for k in text.keys if not k.typed] + [Tokenizer.eos_id] for text in texts]
    messages = once + once
    mixtures = mixtures_of(OwnWordsRule(), vocabulary_size, messages)
    return {"messages": messages, "mixtures": mixtures, "tolerance": 1e-6}


def mixtures_of(
    rule: OwnWordsRule, vocabulary_size: int, messages: list[list[int]]
) -> list[dict[str, Any]]:
    """Count messages; return factor and shares after the first words of each."""
    own = OwnWords(rule, vocabulary_size, Tokenizer.bos_id)
    for ids in messages:
        for place in range(1, len(ids)):
            own.add(np.array(ids[:place]), ids[place])
    mixtures = []
    for after in (ids[:length] for ids in messages for length in (1, 2, 4)):
        factor, shares = own.mixture(np.array(after))
        kept = {str(word): float(shares[word]) for word in np.flatnonzero(shares)}
        mixtures.append({"after": after, "factor": factor, "shares": kept})
    return mixtures


def same_mixture(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two mixtures are equal but for rounding."""
    words = set(one["shares"]) | set(other["shares"])
    pairs = [(one["shares"].get(word, 0.0), other["shares"].get(word, 0.0)) for word in words]
    pairs.append((one["factor"], other["factor"]))
    return all(abs(first - second) <= 1e-6 for first, second in pairs)


def graph_vectors(graph: ExportGraph, given: Arrays, folder: Path) -> dict[str, Any]:
    """Write the inputs and torch's outputs of another graph; return where they lie.

    ``frozen_…`` inputs are the model's own parameters, in ``weights.f32``: they are not repeated.
    """
    places: dict[str, Any] = {"inputs": {}, "outputs": {}, "tolerance": GRADIENT_TOLERANCE}
    outputs = graph(**given)
    for side, values in (("inputs", given), ("outputs", outputs)):
        for name, value in values.items():
            if name.startswith("frozen_"):
                continue
            path = folder / VECTOR_FILES / f"{graph.name}.{side}.{name}.bin"
            path.parent.mkdir(exist_ok=True)
            value.astype(value.dtype.newbyteorder("<")).tofile(path)
            places[side][name] = path.relative_to(folder).as_posix()
    return places


def distance(name: str, found: np.ndarray, wanted: np.ndarray) -> str:
    """Say how far an output of a training graph is from the one expected, or nothing."""
    away = float(np.abs(found - wanted).max())
    allowed = GRADIENT_TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    if away <= allowed:
        return ""
    return f"{name} is {away:.3g} away from torch's, {allowed:.3g} is allowed"


def read_values(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read a raw little-endian file."""
    return np.fromfile(path, np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(shape)


def texts_of(stated: list[list[dict[str, Any]]]) -> list[Text]:
    """Rebuild texts from a bundle's ``testvectors.json``."""
    return [Text(tuple(Key(key["token"], key["typed"]) for key in text)) for text in stated]
