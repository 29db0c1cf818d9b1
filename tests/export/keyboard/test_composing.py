"""Words of pieces on the page against Python's, in Node: the same spelling, the same words."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pfl_lm.api.suggesting import _OfBundle
from pfl_lm.evaluation.composing import Speller
from pfl_lm.export.graphs.predict import AWAY
from pfl_lm.export.signature import Signature, TensorSpec
from pfl_lm.export.vocabulary import blocked_letters
from pfl_lm.models.own_words import OwnWordsRule
from pfl_lm.text.letters import describe
from pfl_lm.text.tokenizer import SUBWORD_FILE, VOCABULARY_FILE, Tokenizer
from pfl_lm.text.tokenizer_assemble import assemble
from tests.text.syllables import GREEK, WORDS, spelled, spelling_greek, spelling_tokenizer

WIDTH = 6
SETUP = """
const { Composer } = await import("./composing.js");
const { Personal } = await import("./personal.js");
const { Predictor } = await import("./predictor.js");
const bytes = (coded) => new Uint8Array(Buffer.from(coded, "base64"));
const { rules, table, blocked, letters, subwords } = given;
const tokenizer = new Tokenizer(rules, table, blocked, letters, "", bytes(subwords));
"""
END = "process.exit();"  # the channel by which the page takes breath stays open
ENCODE = "console.log(JSON.stringify(given.texts.map((text) => tokenizer.encode(text))));" + END
SUGGEST = (
    """
const floats = (coded) => new Float32Array(bytes(coded).buffer);
const [read, write, bias] = [given.read, given.write, given.bias].map(floats), width = given.width;
let runs = 0;
const graph = { async run({ token, state }) {
  runs++;
  const next = state.data.map((one, at) => 0.5 * one + read[token.data[0] * width + at]);
  const score = (id) => next.reduce((sum, x, at) => sum + x * write[id * width + at], 0);
  const logits = bias.map((one, id) => one + score(id));
  return { logits: { data: logits }, new_state: { data: next } };
} };
const inputs = [["token", "int32", [1]], ["state", "float32", [1, width]]];
const entry = { signature: { inputs, state: { new_state: "state" } } };
if (given.languages) tokenizer.choose(given.languages);
const personal = new Personal("test", tokenizer, given.rule);
const predictor = new Predictor(graph, entry, tokenizer, personal, {});
const composer = new Composer(predictor, tokenizer);
const answers = [];
for (const [text, typed, waits] of given.asked) {
  const context = predictor.context(text), listed = await predictor.suggest(context, typed);
  const least = listed.length === 3 ? listed[2].score : 0;
  let left = waits ?? Infinity;
  const before = runs, composed = await composer.compose(context, typed, least, () => left-- <= 0);
  const words = listed.map(({ id, score }) => ({ word: tokenizer.shown(id), score }));
  const best = composed && [...words, ...composed].sort((a, b) => b.score - a.score).slice(0, 3);
  const shown = best?.map(({ word, score }) => [word, score]) ?? null;
  answers.push({ best: shown, runs: runs - before });
}
console.log(JSON.stringify(answers));
"""
    + END
)


def coded(values: np.ndarray | bytes) -> str:
    return base64.b64encode(bytes(values)).decode()


class Model:
    """A state that halves with each id, and scores that are linear in it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        draw, size = np.random.default_rng(5), tokenizer.vocabulary_size
        self.read = draw.normal(size=(size, WIDTH)).astype(np.float32)
        self.write = draw.normal(size=(size, WIDTH)).astype(np.float32)
        pieces = np.array([kind == "subword" for kind in tokenizer.kinds])
        self.bias = np.where(pieces, -1, 0).astype(np.float32)
        self.signature = Signature(
            (TensorSpec("token", "int32", (1,)), TensorSpec("mask", "float32", (1, size)),
             TensorSpec("state", "float32", (1, WIDTH))),
            (TensorSpec("logits", "float32", (1, size)),
             TensorSpec("new_state", "float32", (1, WIDTH))),
            {"new_state": "state"},
        )  # fmt: skip

    def __call__(self, token: np.ndarray, mask: np.ndarray, state: np.ndarray) -> dict[str, Any]:
        state = (0.5 * state + self.read[token]).astype(np.float32)
        logits = (state.astype(np.float64) @ self.write.T + self.bias).astype(np.float32)
        order = np.argsort(-(logits + mask), kind="stable")[:, :3]
        scores = np.take_along_axis(logits + np.where(mask < AWAY / 2, AWAY, mask), order, 1)
        return {"words": order, "scores": scores, "logits": logits, "new_state": state}

    def data(self) -> dict[str, Any]:
        tables = {name: coded(getattr(self, name).tobytes()) for name in ("read", "write", "bias")}
        return {"width": WIDTH, **tables}


def vocabulary(tokenizer: Tokenizer, *blocked: str) -> dict[str, Any]:
    ids = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in ("unk", "bos", "eos")}
    return {
        "rules": tokenizer.normalisation.in_browser() | ids,
        "table": tokenizer.files[VOCABULARY_FILE].decode(),
        "blocked": blocked,
        "letters": describe(),
        "subwords": coded(tokenizer.files[SUBWORD_FILE]),
        "rule": {"strengths": OwnWordsRule().strengths, "discounts": OwnWordsRule().discounts},
    }


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return spelling_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer) -> Model:
    return Model(tokenizer)


def test_page_and_python_spell_alike(node, tokenizer):
    draw = np.random.default_rng(1)
    letters = [*"kalomiterusdp", "vén", "é", "ж", "ß", "𝒳", "日本", "'"]
    drawn = ["".join(draw.choice(letters, draw.integers(1, 12))) for _ in range(1000)]
    texts = [*WORDS, *drawn, "ka 👍 zorblax, 12"]
    answers = node(SETUP + ENCODE, vocabulary(tokenizer) | {"texts": texts})
    for text, ids in zip(texts, answers, strict=True):
        assert ids == tokenizer.encode(text), text
    raw = {i for i, word in enumerate(tokenizer.words) if word.startswith("<0x")}
    assert any(raw & set(ids) for ids in answers)


def test_page_and_python_go_on_with_the_same_pieces(node, tokenizer):
    fitting = """
    const composer = new Composer(null, tokenizer);
    const fitting = ([begins, rest]) => composer.fitting(begins, rest);
    console.log(JSON.stringify(given.asked.map(fitting)));
    """
    for one, words in ((tokenizer, WORDS), (spelling_greek(), GREEK)):
        speller = Speller(one)
        rests = {speller.typed(word[:n].upper()) for word in words[::7] for n in range(6)}
        asked = [(begins, rest) for rest in sorted(rests) for begins in (True, False)]
        answers = node(SETUP + fitting + END, vocabulary(one) | {"asked": asked})
        for (begins, rest), places in zip(asked, answers, strict=True):
            assert sorted(places) == sorted(speller.fitting(begins, rest)), rest


def of_two_languages() -> Tokenizer:
    """The same vocabulary, a third of whose listed words are Spanish alone."""
    one = spelling_tokenizer()
    rows = [*zip(one.words, one.kinds, [1] * one.vocabulary_size, strict=True)]
    only_of = [
        ("es_ES", "en_US", "")[id % 3] if kind == "word" else ""
        for id, kind in enumerate(one.kinds)
    ]
    about = {"shares": {"en_US": 0.5, "es_ES": 0.5}}
    return assemble(rows, one.normalisation, about, one.files[SUBWORD_FILE], only_of=only_of)


def asked(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return texts and the letters typed after them."""
    begins = [word[:n] for word in spelled(tokenizer)[::40] for n in range(7)]
    return [(text, begin) for text in ("", "lo lo ka", "mitermiter pa") for begin in begins]


def test_page_and_python_show_the_same_three_words(node, tokenizer, model):
    pairs = asked(tokenizer)
    given = vocabulary(tokenizer) | model.data()
    answers = node(SETUP + SUGGEST, given | {"asked": pairs})
    bundle = _OfBundle(model, SimpleNamespace(signature=model.signature), tokenizer, (),
                       Speller.of(tokenizer))  # fmt: skip
    listed, composed = set(tokenizer.words), 0
    for (text, typed), answer in zip(pairs, answers, strict=True):
        expected = bundle.offer(text, 3, typed).words
        found = [word for word, _ in answer["best"]]
        assert found == [word for word, _ in expected], (text, typed)
        if expected:  # Python's scores are logits
            chances, logits = ([score for _, score in one] for one in (answer["best"], expected))
            assert np.ptp(np.log(chances) - logits) < 1e-4
        composed += len(set(found) - listed)
    assert composed > 50


def test_page_and_python_leave_out_the_same_words(node, model):
    """Listed and composed; a word of the other language alone is read as an unknown one."""
    both = of_two_languages()
    writer = both.of_languages(["en_US"])
    pairs = [*asked(both)[::3], ("kalo lolo kami", ""), ("kalo", "ka")]
    given = vocabulary(both) | model.data() | {"asked": pairs, "languages": ["en_US"]}
    answers = node(SETUP + SUGGEST, given)
    bundle = _OfBundle(model, SimpleNamespace(signature=model.signature), writer, (),
                       Speller.of(writer))  # fmt: skip
    left_out = {both.words[id] for id in writer.left_out}
    composed = 0
    for (text, typed), answer in zip(pairs, answers, strict=True):
        expected = bundle.offer(text, 3, typed).words
        found = [word for word, _ in answer["best"]]
        assert found == [word for word, _ in expected], (text, typed)
        assert not left_out & {*found}
        if expected:
            chances, logits = ([score for _, score in one] for one in (answer["best"], expected))
            assert np.ptp(np.log(chances) - logits) < 1e-4
        composed += len({*found} - {*both.words})
    assert composed > 10
    everything = node(SETUP + SUGGEST, vocabulary(both) | model.data() | {"asked": pairs})
    assert left_out & {word for answer in everything for word, _ in answer["best"]}


def test_the_page_gives_left_out_words_no_chance_and_trains_on_them(node, model):
    both = of_two_languages()
    writer = both.of_languages(["en_US"])
    given = vocabulary(both) | model.data() | {"asked": [], "languages": ["en_US"]}
    texts = [both.words[id] for id in (*writer.left_out[:3], writer.encode("lo")[0])]
    script = """
    const chance = await predictor.chances(predictor.context("lo lo"), false);
    const all = tokenizer.words.map((_, id) => chance(id));
    const encoded = (whole) => given.texts.map((text) => tokenizer.encode(text, whole));
    console.log(JSON.stringify({ all, own: encoded(false), whole: encoded(true) }));
    """
    end = SUGGEST.replace("console.log(JSON.stringify(answers));", script)
    found = node(SETUP + end, given | {"texts": texts})
    assert sum(found["all"]) == pytest.approx(1)
    assert {found["all"][id] for id in writer.left_out} == {0}
    assert found["own"] == [writer.encode(text) for text in texts]
    assert found["whole"] == [both.encode(text) for text in texts]


def test_the_page_composes_nothing_that_its_list_blocks(node, tokenizer, model):
    (text, typed), listed = ("lo lo ka", "miter"), set(tokenizer.words)
    given = model.data() | {"asked": [(text, typed)]}
    answer = node(SETUP + SUGGEST, vocabulary(tokenizer) | given)[0]
    word = next(word for word, _ in answer["best"] if word not in listed)
    careful = node(SETUP + SUGGEST, vocabulary(tokenizer, word.upper()) | given)[0]
    assert word not in [word for word, _ in careful["best"]]
    assert blocked_letters([word.upper()], tokenizer)


def test_the_next_key_ends_a_search_and_what_was_read_is_kept(node, tokenizer, model):
    text, typed = "lo lo ka", spelled(tokenizer)[9][:4]
    given = vocabulary(tokenizer) | model.data()
    alone = node(SETUP + SUGGEST, given | {"asked": [(text, typed)]})[0]
    assert alone["runs"] > 3
    pairs = [(text, typed, 2), (text, typed), (text, typed), (text, typed + "q")]
    stopped, rest, again, longer = node(SETUP + SUGGEST, given | {"asked": pairs})
    assert stopped == {"best": None, "runs": 2}
    assert rest == {"best": alone["best"], "runs": alone["runs"] - 2}
    assert again == {"best": alone["best"], "runs": 0}
    assert longer["runs"] < alone["runs"]
