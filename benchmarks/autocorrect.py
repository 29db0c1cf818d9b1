"""How well the keyboard page corrects slips of the finger: the table of RESULTS.

    python -m benchmarks.autocorrect MODEL TOKENIZER TEXT [--words 4000] [--misspellings LIST]

TEXT holds messages, a line each as JSON with a field `text`. Words are drawn from it with what
stands before them in the message, and the model says what it expects there. Each word of the
vocabulary is typed once as it is and once with one slip; words that the vocabulary lacks are typed
as they are. Slips are drawn here, by no rule of the page's: most are touches that miss the middle
of the key by a normal error and land on another one. The page's own modules then say, in Node,
what they would put in place.

LIST has misspellings that people made (`wrong->right`, as the package codespell writes its
dictionary). With it one of these is typed in place of a drawn slip.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pfl_lm.keyboard.site
from pfl_lm.evaluation.suggestions import LONGEST
from pfl_lm.models import models
from pfl_lm.models.file import Model, load_model
from pfl_lm.text.compressed import open_text
from pfl_lm.text.tokenizer import Tokenizer

KINDS = {"touch": 0.6, "omitted": 0.15, "swapped": 0.15, "doubled": 0.05, "extra": 0.05}
MISS = 0.45  # deviation of a touch from a key's middle, in widths of a key
PITCH = 1.4  # height of a row, in widths of a key
MODULES = {"autocorrect", "inflection", "layouts", "lexicon", "slips", "spelling", "tokenizer"}
CHUNK = 500  # words whose predictions, 30,000 each, are handed over at once
RUN = """
import fs from "fs";
import { Corrector } from "./autocorrect.js";
import { Layouts } from "./layouts.js";
import { Tokenizer } from "./tokenizer.js";
const given = JSON.parse(fs.readFileSync(0, "utf8"));
const tokenizer = new Tokenizer(given.rules, given.table);
const layouts = JSON.parse(fs.readFileSync("./layouts.json"));
const layout = new Layouts(layouts, given.locale).open(given.layout);
const corrector = new Corrector(tokenizer, layout);
const bytes = fs.readFileSync(given.chances);
const chances = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
console.log(JSON.stringify(given.typed.map(({ row, typed, begins }) => {
  const chance = (id) => chances[row * tokenizer.size + id];
  const began = performance.now();
  const found = corrector.correct(typed, chance, { begins });
  const ms = performance.now() - began;
  return { word: found?.word ?? null, gain: found?.gain ?? null,
    sure: found?.sure ?? false, ms };
})));
"""


@dataclass(frozen=True)
class Place:
    """A word of a message.

    Attributes:
        word: as the vocabulary reads it.
        context: ids before it, the sign of a message's begin first.
        known: whether the vocabulary has it.
    """

    word: str
    context: tuple[int, ...]
    known: bool


@dataclass(frozen=True)
class Typed:
    """What was typed at a place: the word itself, or a slip (of a kind)."""

    row: int
    typed: str
    kind: str
    begins: bool = False


def places_of(
    texts: list[str], tokenizer: Tokenizer, count: int, draw: random.Random
) -> list[Place]:
    """Draw words of letters, two at least, as often as people write them, and a quarter as many
    more of those that the vocabulary lacks."""
    found: dict[bool, list[tuple[list[str], int]]] = {True: [], False: []}
    for text in texts:
        pieces = tokenizer.normalisation.pieces(text)
        known = [id != tokenizer.unk_id for id in tokenizer.encode(text)]
        for at, piece in enumerate(pieces):
            if len(piece) > 1 and all(one.isalpha() or one == "'" for one in piece):
                found[known[at]].append((pieces, at))
    places = []
    for known_word, wanted in ((True, count), (False, count // 4)):
        words = found[known_word]
        for pieces, at in draw.sample(words, min(wanted, len(words))):
            ids = tokenizer.encode(" ".join(pieces[max(0, at - LONGEST) : at]))
            places.append(Place(pieces[at], (tokenizer.bos_id, *ids), known_word))
    return places


class Fingers:
    """Types words with slips on a layout of the page."""

    def __init__(self, layout: str, draw: random.Random) -> None:
        content = json.loads((pfl_lm.keyboard.site.PAGE / "layouts.json").read_text("utf-8"))
        rows = [row.split(" ") for row in content["layouts"][layout]["rows"]]
        widest = max(map(len, rows))
        self.keys = {
            key: (x + (widest - len(row)) / 2, y * PITCH)
            for y, row in enumerate(rows)
            for x, key in enumerate(row)
        }
        self.draw = draw

    def slip(self, word: str) -> tuple[str, str] | None:
        """Return the word with one slip and the slip's kind; None where no slip changes it."""
        for _ in range(20):
            (kind,) = self.draw.choices([*KINDS], [*KINDS.values()])
            at = self.draw.randrange(len(word))
            typed = getattr(self, f"_{kind}")(word, at)
            if typed not in (None, word):
                return typed, kind
        return None

    def _touch(self, word: str, at: int) -> str | None:
        if word[at] not in self.keys:
            return None
        x, y = self.keys[word[at]]
        while (hit := self._nearest(x, y)) == word[at]:
            pass
        return word[:at] + hit + word[at + 1 :]

    def _nearest(self, x: float, y: float) -> str:
        spot = (self.draw.gauss(x, MISS), self.draw.gauss(y, MISS))
        return min(self.keys, key=lambda key: math.dist(self.keys[key], spot))

    def _omitted(self, word: str, at: int) -> str | None:
        return word[:at] + word[at + 1 :] if len(word) > 2 else None

    def _swapped(self, word: str, at: int) -> str:
        return word[:at] + word[at : at + 2][::-1] + word[at + 2 :]

    def _doubled(self, word: str, at: int) -> str:
        return word[: at + 1] + word[at:]

    def _extra(self, word: str, at: int) -> str | None:
        if word[at] not in self.keys:
            return None
        x, y = self.keys[word[at]]
        beside = sorted(self.keys, key=lambda key: math.dist(self.keys[key], (x, y)))[1:5]
        return word[: at + 1] + self.draw.choice(beside) + word[at + 1 :]


def misspellings(path: Path) -> dict[str, list[str]]:
    """Read `wrong->right` lines that name one right word: right → its misspellings."""
    found = defaultdict(list)
    for line in path.read_text("utf-8").splitlines():
        wrong, _, right = line.partition("->")
        if "," not in right and " " not in right:
            found[right.strip()].append(wrong)
    return found


def predictions(model: Model, places: list[Place]) -> np.ndarray:
    """Return the chances of every word at each place, float32[n, V]."""
    rows = []
    for place in places:
        hidden = models.hidden_of(model.spec, model.parameters, np.array([place.context]))[0, -1:]
        rows.append(
            torch.softmax(models.scores(model.spec, model.parameters, hidden)[0].double(), 0)
        )
    return torch.stack(rows).float().numpy()


def ask_page(
    tokenizer: Tokenizer, layout: str, chances: np.ndarray, typed: list[Typed]
) -> list[dict[str, Any]]:
    """Return what the page's modules say of each."""
    with tempfile.TemporaryDirectory() as folder:
        for name in MODULES:
            source = (pfl_lm.keyboard.site.PAGE / f"{name}.js").read_text("utf-8")
            (Path(folder) / f"{name}.js").write_text(source, "utf-8")
        data = (pfl_lm.keyboard.site.PAGE / "layouts.json").read_bytes()
        (Path(folder) / "layouts.json").write_bytes(data)
        (Path(folder) / "package.json").write_text('{"type": "module"}')
        (Path(folder) / "run.js").write_text(RUN)
        chances.tofile(Path(folder) / "chances")
        given = {
            "rules": tokenizer.normalisation.in_browser() | {"unk_id": tokenizer.unk_id},
            "table": tokenizer.files["vocabulary.tsv"].decode(),
            "locale": tokenizer.manifest.get("locale", "en_US"),
            "layout": layout,
            "chances": f"{folder}/chances",
            "typed": [asdict(one) for one in typed],
        }
        done = subprocess.run(
            ["node", "run.js"], cwd=folder, input=json.dumps(given), text=True,
            capture_output=True, check=True,
        )  # fmt: skip
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def trials(
    places: list[Place], fingers: Fingers, wrong: dict[str, list[str]] | None
) -> Iterator[Typed]:
    """Yield what is typed at each place: the word, and if the vocabulary has it also a slip."""
    for row, place in enumerate(places):
        begins = len(place.context) == 1
        yield Typed(row, place.word, "right" if place.known else "unknown", begins)
        if not place.known:
            continue
        if wrong is not None:
            if place.word in wrong:
                yield Typed(row, fingers.draw.choice(wrong[place.word]), "misspelt", begins)
        elif slip := fingers.slip(place.word):
            yield Typed(row, slip[0], slip[1], begins)


def main() -> None:
    """Type, ask, and print a table of kinds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--words", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layout", default="qwerty")
    parser.add_argument("--misspellings", type=Path)
    parser.add_argument(
        "--each", type=Path, help="write every word and answer there, as JSON lines"
    )
    options = parser.parse_args()
    draw = random.Random(options.seed)
    tokenizer, model = Tokenizer.open(options.tokenizer), load_model(options.model)
    with open_text(options.text) as file:
        texts = [json.loads(line)["text"] for line in file]
    wrong = misspellings(options.misspellings) if options.misspellings else None
    if wrong is not None:
        texts = [text for text in texts if not wrong.keys().isdisjoint(text.split())]
    places, fingers = (
        places_of(texts, tokenizer, options.words, draw),
        Fingers(options.layout, draw),
    )
    rows: list[dict[str, Any]] = []
    for start in range(0, len(places), CHUNK):
        part = places[start : start + CHUNK]
        typed = [*trials(part, fingers, wrong)]
        answers = ask_page(tokenizer, options.layout, predictions(model, part), typed)
        for one, answer in zip(typed, answers, strict=True):
            rows.append(asdict(one) | {"meant": part[one.row].word} | answer)
    if options.each:
        options.each.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    _print(rows)


def _print(rows: list[dict[str, Any]]) -> None:
    slips = [row for row in rows if row["kind"] not in ("right", "unknown")]
    print("| typed | words | to the word meant | to another | left | first guess is right |")
    print("|---|---|---|---|---|---|")
    for kind in ("every slip", *dict.fromkeys(row["kind"] for row in slips)):
        group = [row for row in slips if kind in ("every slip", row["kind"])]
        changed = [row for row in group if row["sure"]]
        right = sum(row["word"] == row["meant"] for row in changed)
        guessed = sum(row["word"] == row["meant"] for row in group)
        shares = (right, len(changed) - right, len(group) - len(changed), guessed)
        print(f"| {kind} | {len(group)} |", *(f"{n / len(group):.1%} |" for n in shares))
    for kind, name in (("right", "right words"), ("unknown", "words that the vocabulary lacks")):
        group = [row for row in rows if row["kind"] == kind]
        changed = [row for row in group if row["sure"]]
        print(f"{name}: {len(changed)} of {len(group)} changed, {len(changed) / len(group):.2%}")
        print("  ", ", ".join(f"{row['typed']} → {row['word']}" for row in changed[:25]))
    times = np.array([row["ms"] for row in rows])
    middle, high = np.quantile(times, [0.5, 0.99])
    print(f"{middle:.1f} ms a word (median), {high:.1f} ms (99%), {times.max():.1f} ms at most")


if __name__ == "__main__":
    main()
