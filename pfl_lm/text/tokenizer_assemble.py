"""From the rows of a vocabulary to the files of a tokenizer, and to the tokenizer itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.tokenizer import (
    CONTROLS,
    FORMS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    SUBWORD_FILE,
    VOCABULARY_FILE,
    Tokenizer,
)

Row = tuple[str, str, int]  # piece, kind, count


def assemble(
    rows: list[Row],
    normalisation: Normalisation,
    about: dict[str, Any],
    subword_model: bytes | None = None,
    forms: bytes | None = None,
    only_of: Sequence[str] = (),
) -> Tokenizer:
    """Make a tokenizer in memory from its rows (by id); ``about`` goes into the manifest.

    Args:
        only_of: for each row the locale that it belongs to alone, or an empty text; none at all in
            a vocabulary of one language.
    """
    files = {
        MODEL_FILE: _sentencepiece_words([row for row in rows if row[1] != "subword"]),
        VOCABULARY_FILE: _vocabulary_table(rows, only_of),
    }
    if subword_model is not None:
        files[SUBWORD_FILE] = subword_model
    if forms is not None:
        files[FORMS_FILE] = forms
    manifest = about | {
        "size": len(rows),
        "normalisation": normalisation.describe(),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    files[MANIFEST_FILE] = json.dumps(manifest, indent=1, ensure_ascii=False).encode()
    return Tokenizer(files)


def _vocabulary_table(rows: list[Row], only_of: Sequence[str]) -> bytes:
    lines = ["id\tpiece\tkind\tcount"]
    lines += [f"{i}\t{piece}\t{kind}\t{count}" for i, (piece, kind, count) in enumerate(rows)]
    if only_of:
        lines = [f"{line}\t{of}" for line, of in zip(lines, ["only_of", *only_of], strict=True)]
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
