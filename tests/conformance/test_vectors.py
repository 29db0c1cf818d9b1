"""The vectors: how many, of what, the same everywhere; and the reference's own answers to them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pfl_lm.conformance.answers import KINDS, answer
from pfl_lm.conformance.encoding_answers import ROTATION_UNIT
from pfl_lm.conformance.suite import suite
from pfl_lm.conformance.vectors import read_vectors, write_vectors
from pfl_lm.conformance.verify import compare
from pfl_lm.dp.rotation import Rotation
from pfl_lm.secagg.wire import VERSION
from tests.conformance.flips import flipped_input, flipped_output

PROTOCOL = Path(__file__).resolve().parents[2] / "pfl_lm/secagg/PROTOCOL.md"
POSITIVE = [vector for vector in suite() if vector.positive]
NEGATIVE = [vector for vector in suite() if not vector.positive]
DIGEST = (
    "import hashlib, json; from pfl_lm.conformance.suite import suite;"
    "text = json.dumps([v.as_json() for v in suite()]);"
    "print(hashlib.sha256(text.encode()).hexdigest())"
)


def test_there_are_enough_of_either_sign_and_of_every_kind():
    assert len(POSITIVE) >= 60
    assert len(NEGATIVE) >= 40
    assert {vector.kind for vector in POSITIVE} == set(KINDS)
    assert len({vector.name for vector in suite()}) == len(suite())


def test_a_round_of_five_is_there_with_a_dropout_in_each_phase():
    names = {vector.name for vector in POSITIVE if vector.kind == "device"}
    for phase in ("keys", "shares", "input", "answer"):
        for signed in ("unsigned", "signed"):
            assert {f"device_{signed}_4_drops_at_{phase}_{i}" for i in range(5)} <= names
    assert {f"device_signed_4_drops_at_confirmation_{i}" for i in range(5)} <= names


def test_another_process_without_kernels_makes_the_same_bytes():
    text = json.dumps([vector.as_json() for vector in suite()])
    settings = {**os.environ, "PFL_LM_NATIVE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", DIGEST], env=settings, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(text.encode()).hexdigest()


def test_the_files_hold_what_was_made(tmp_path):
    chosen = [POSITIVE[0], POSITIVE[-1], NEGATIVE[0], NEGATIVE[-1]]
    assert write_vectors(chosen, tmp_path / "vectors") == 4
    assert read_vectors(tmp_path / "vectors") == chosen
    with pytest.raises(ValueError, match="exists already"):
        write_vectors(chosen, tmp_path / "vectors")


def test_files_of_another_version_or_damaged_ones_are_refused(tmp_path):
    folder = tmp_path / "vectors"
    write_vectors([POSITIVE[0]], folder)
    file = folder / "positive" / f"{POSITIVE[0].name}.json"
    file.write_text("{")
    with pytest.raises(ValueError, match=file.name):
        read_vectors(folder)
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="cannot be read"):
        read_vectors(folder)
    file.write_text('{"colour": 1}')
    with pytest.raises(ValueError, match="no vector"):
        read_vectors(folder)
    (folder / "index.json").write_text(json.dumps({"version": VERSION - 1}))
    with pytest.raises(ValueError, match=f"version {VERSION - 1}"):
        read_vectors(folder)
    with pytest.raises(ValueError, match="cannot be read"):
        read_vectors(tmp_path / "elsewhere")


def test_the_reference_answers_every_vector():
    wrong = [v.name for v in suite() if not compare(v, answer(v.kind, v.inputs)).conforms]
    assert wrong == []


def test_a_flipped_bit_of_an_input_is_another_answer():
    assert [v.name for v in POSITIVE if _answered_alike(v)] == []


def _answered_alike(vector) -> bool:
    mutated = flipped_input(vector)
    return compare(vector, answer(mutated.kind, mutated.inputs)).conforms


def test_a_flipped_bit_of_an_output_is_found():
    for vector in POSITIVE:
        assert not compare(flipped_output(vector), vector.answer).conforms, vector.name
        assert compare(vector, vector.answer).conforms


def differences(one, other) -> int:
    """Count the places where two JSON values differ; lists of unlike length are one."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return sum(differences(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return sum(map(differences, one, other))
    return int(one != other)


def test_every_negative_vector_is_one_mutation_away_from_an_accepted_one():
    accepted = {vector.name: vector for vector in POSITIVE}
    for vector in NEGATIVE:
        base = accepted[vector.mutation_of]
        assert base.kind == vector.kind
        assert differences(dict(base.inputs), dict(vector.inputs)) == 1, vector.name


def test_every_rule_stands_in_the_protocol():
    text = " ".join(PROTOCOL.read_text(encoding="utf-8").replace("*", "").split())
    for vector in NEGATIVE:
        assert vector.rule in text, vector.name


def test_every_sentence_that_says_refuse_has_a_vector():
    rules = {vector.rule for vector in NEGATIVE}
    text = PROTOCOL.read_text(encoding="utf-8").split("## 4.")[1].split("## 5.")[0]
    clauses = []
    for paragraph in re.findall(r"\*Refuse\* (?:as|if).*?(?:\n\n|\Z)", text, re.DOTALL):
        plain = " ".join(paragraph.split())
        clauses += [part for part in re.split(r"(?=\bif\b)", plain) if part.startswith("if")]
    assert len(clauses) > 15
    for clause in clauses:
        assert any(rule in clause for rule in rules), clause


def test_no_rotated_coordinate_lies_where_rounding_could_go_either_way():
    """float32 errs by less than 2^-17 at these sizes: 0.0005 of the unit in which they compare."""
    for vector in POSITIVE:
        if vector.kind == "rotate":
            row = np.frombuffer(bytes.fromhex(vector.inputs["row"]), dtype="<f4").copy()[None]
            rotation = Rotation(row.shape[1], bytes.fromhex(vector.inputs["seed"]))
            (rotation.inverse if vector.inputs["inverse"] else rotation.forward)(row)
            units = row[0].astype(np.float64) * ROTATION_UNIT
            assert np.abs(units - np.floor(units) - 0.5).min() > 0.002, vector.name
