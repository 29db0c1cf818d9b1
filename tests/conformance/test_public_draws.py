"""What PROTOCOL.md says of public draws, written from that page alone: cohorts, rows, digests."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import pfl_lm.secagg
from pfl_lm.dp.cohort import CohortRule, cohort
from pfl_lm.models.file import Model
from pfl_lm.models.models import ModelSpec, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.queries.comparison import answer, comparison_query
from pfl_lm.queries.prefix_tree import Tree, TreePlan
from pfl_lm.queries.stated import plan_of
from pfl_lm.queries.two_models import TwoModels
from pfl_lm.queries.word_list import WordList, word_query

SEED = 11


def digest(*labels: int | str) -> bytes:
    content = b""
    for label in labels:
        text = (f"i{label}" if isinstance(label, int) else f"s{label}").encode("ascii")
        content += struct.pack("<Q", len(text)) + text
    return hashlib.blake2b(content, digest_size=32, person=b"pfl_lm stream").digest()


def public_stream(*labels: int | str) -> np.random.Generator:
    key = np.array(struct.unpack("<2Q", digest(*labels)[:16]), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def first_different(m: int, n: int, random: np.random.Generator) -> list[int]:
    if n > m // 2:
        out = set(first_different(m, m - n, random))
        return [number for number in range(m) if number not in out]
    drawn = random.integers(m, size=n + n // 2).tolist()
    while len(dict.fromkeys(drawn)) < n:
        drawn += random.integers(m, size=n).tolist()
    return list(dict.fromkeys(drawn))[:n]


@dataclass(frozen=True)
class Feistel:
    """Which device a place belongs to."""

    devices: int
    secret: bytes

    def __call__(self, place: int) -> int:
        bits = max(2, (self.devices - 1).bit_length())
        low = bits // 2
        halves, widths = [place >> low, place & (1 << low) - 1], [bits - low, low]
        aes = Cipher(algorithms.AES(hashlib.sha256(self.secret).digest()), modes.ECB()).encryptor()
        for j in range(9, -1, -1):
            mine = j % 2
            block = aes.update(struct.pack("<QQ", halves[1 - mine], j))
            (word,) = struct.unpack("<Q", block[:8])
            halves[mine] ^= word & (1 << widths[mine]) - 1
        found = halves[0] << low | halves[1]
        return found if found < self.devices else self(found)


@pytest.mark.parametrize(
    ("devices", "invited", "separation"), [(3, 3, 1), (40, 6, 5), (100, 30, 2), (1003, 9, 100)]
)
def test_whom_a_round_invites(devices, invited, separation):
    rule = CohortRule("rotation", devices, invited, separation)
    owner = Feistel(devices, digest(SEED, "rotation slots"))
    for r in (0, 1, separation, 7 * separation + 1):
        s = r % separation
        m = (devices - s + separation - 1) // separation
        places = first_different(m, invited, public_stream(SEED, "cohort", "rotation", r))
        found = sorted(owner(s + separation * number) for number in places)
        assert found == cohort(rule, SEED, r).tolist()


@pytest.mark.parametrize(
    "plan",
    [
        PayloadPlan(rows=40, draw="unigram", temper=0.5),
        PayloadPlan(rows=40, dense="biases", outside="skip"),
        PayloadPlan(),
        PayloadPlan(rows="none"),
    ],
)
@pytest.mark.parametrize("spec", [ModelSpec("lstm", 120, 8, hidden_dim=12, tied=False)])
def test_what_a_round_carries_and_its_digest(plan, spec):
    unigram, always, r = np.linspace(1, 5, 120) / 360, [0, 1, 2, 3, 9], 4
    payload = choose(plan, roles(spec), unigram, always, SEED, r)
    rows = b"" if plan.rows == "none" else b"all"
    if isinstance(plan.rows, int):
        others = [word for word in range(120) if word not in always]
        weight = unigram[others] ** plan.temper if plan.draw == "unigram" else np.ones(len(others))
        times = public_stream(SEED, "rows", r).exponential(size=len(others)) / weight
        order = np.argsort(times)
        taken, missed = order[: plan.rows - len(always)], order[plan.rows - len(always)]
        words = sorted([*always, *(others[place] for place in taken)])
        assert payload.rows is not None
        assert payload.rows.tolist() == words
        chance = dict.fromkeys(always, 1.0)
        for place in taken:
            drawn = 1 - np.exp(-weight[place] * times[missed])
            chance[others[place]] = drawn if plan.draw == "unigram" else len(taken) / len(others)
        np.testing.assert_allclose(payload.inclusion, [chance[word] for word in words])
        rows = struct.pack(f"<{len(words)}q", *words)
    content = b""
    for name, role in roles(spec).items():
        table = role.kind == "rows"
        if (table and plan.rows == "none") or (plan.dense == "biases" and role.kind == "dense"):
            continue
        some = table and isinstance(plan.rows, int)
        shape = (plan.rows, *role.shape[1:]) if some else role.shape
        written = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        content += f"{name}|({written})|{not some};".encode()
    content += rows + plan.outside.encode()
    assert hashlib.sha256(content).hexdigest() == payload.digest


def query_digest(*items: object) -> str:
    return hashlib.sha256(json.dumps(items).encode("ascii")).hexdigest()


def test_the_digest_of_a_question_for_words():
    words = ["moarvm", "rakudo", "ünïcode"]
    stated = query_digest("words of a public list", words, 3, 1.0, 1.0, 1024)
    assert stated == word_query(words, 20, 1024).digest


MEASURES = {  # name: range, w², v²
    "log-loss": (0.5, 0.45, 0.15),
    "top-1": (0.25, 0.075, 0.025),
    "top-3": (0.25, 0.075, 0.025),
    "keystrokes saved": (0.25, 0.075, 0.025),
}
NINE = ["phones with text"]
NINE += [f"{name}, {what}" for name in MEASURES for what in ("difference", "square")]


def nine_entries(differences: dict[str, float]) -> np.ndarray:
    entries = [math.sqrt(0.1)]
    for name, (limit, w, v) in MEASURES.items():
        x = min(1.0, max(-1.0, differences[name] / limit))
        entries += [math.sqrt(w) * x, math.sqrt(v) * x * x]
    return np.array(entries, np.float32)


@pytest.mark.parametrize("labels", [[], ["en_GB", "en_US", "other"]])
def test_a_comparison_and_a_device_s_answer(labels):
    cells = NINE + [f"{label}: {name}" for label in labels for name in NINE]
    blocks = [[9 * (g + 1), 9 * (g + 2)] for g in range(len(labels))]
    stated = ["candidate less current", cells, 18 if labels else 9, 1.0, 1.0, max(len(cells), 20)]
    query = comparison_query(20, labels)
    assert query_digest(*stated, *([blocks] if labels else [])) == query.digest
    differences = {"log-loss": 0.1, "top-1": -0.3, "top-3": 0.01, "keystrokes saved": 0.0}
    mine, own = np.zeros(query.dim, np.float32), nine_entries(differences)
    if labels:
        own *= np.float32(math.sqrt(0.5))
        mine[9 * 2 : 9 * 3] = own  # the second label
    mine[:9] = own
    theirs = query.vectors([answer(differences, 1 if labels else None)])[0]
    np.testing.assert_allclose(mine, theirs, rtol=3e-7)


def test_every_field_of_a_question_stands_on_the_page():
    page = (Path(pfl_lm.secagg.__file__).parent / "PROTOCOL.md").read_text(encoding="utf-8")
    spec = ModelSpec("lstm", 120, 8, hidden_dim=12)
    model = Model(spec, {}, {"kind": "none"})
    tree = TreePlan(2, 2, 60_000, 0.1, tuple("abc"))
    asked = [WordList(("a",), 1, 0.1), Tree(tree), TwoModels((model, model), 40, 8, ("a", "b"))]
    for plan in map(plan_of, asked):
        assert f'"kind": "{plan.pop("kind")}"' in page
        for name in plan:
            assert f'"{name}": ' in page, name
