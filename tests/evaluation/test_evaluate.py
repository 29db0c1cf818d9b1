"""Evaluation: against a slow and plain reference, and on models whose figures are known."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from pfl_lm.evaluation import as_typed, held_out
from pfl_lm.evaluation import evaluate as module
from pfl_lm.evaluation.evaluate import ModelScorer, evaluate
from pfl_lm.models import models
from pfl_lm.models.spec import ModelSpec

PAD, UNK, BOS, EOS = range(4)


class Tokenizer:
    pad_id, unk_id, bos_id, eos_id = PAD, UNK, BOS, EOS

    def __init__(self, words, kinds=None, specials=(PAD, UNK, BOS, EOS)):
        self.words = ["<pad>", "<unk>", "<s>", "</s>", *words]
        self.specials = specials
        self.unigram = np.arange(len(self.words), 0, -1) / sum(range(len(self.words) + 1))
        if kinds:
            self.kinds = ["control"] * 4 + kinds


class People:
    def __init__(self, streams):
        self.streams = [np.array(stream, dtype=np.int32) for stream in streams]

    def users(self, split):
        return len(self.streams)

    def tokens(self, split, user):
        return self.streams[user]


class Table:
    """The next word from the last one, by a table of scores (V, V)."""

    def __init__(self, table):
        self.table = torch.from_numpy(np.asarray(table, dtype=np.float32))
        self.largest = 0

    def states(self, inputs):
        return torch.from_numpy(np.ascontiguousarray(inputs))

    def scores(self, states, words):
        scores = self.table[states][:, words]
        self.largest = max(self.largest, scores.numel())
        return scores


def random_world(seed=0, words=60, users=7):
    random = np.random.default_rng(seed)
    letters = list("abcd")
    vocabulary = sorted(
        {"".join(random.choice(letters, random.integers(1, 7))) for _ in range(words)}
    )
    tokenizer = Tokenizer(vocabulary)
    size = len(tokenizer.words)
    streams = []
    for _ in range(users):
        stream = []
        for _ in range(random.integers(1, 6)):
            body = random.integers(4, size, random.integers(0, 9)).tolist()
            stream += [BOS, *(UNK if random.random() < 0.1 else word for word in body), EOS]
        streams.append(stream)
    return tokenizer, People(streams), Table(random.normal(size=(size, size)) * 3)


def by_hand(tokenizer, people, table):
    """Everything one token at a time."""
    scores = table.table.double().numpy()
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    words = [i for i in range(len(tokenizer.words)) if i not in tokenizer.specials]
    unknown_length = np.mean([len(tokenizer.words[i]) for i in words])
    out = []
    for stream in people.streams:
        for before, target in pairwise(stream):
            if target in (PAD, BOS):
                continue
            row = {"nats": -log_p[before, target], "target": int(target)}
            ranked = sorted(words, key=lambda i: (-scores[before, i], i))
            text = tokenizer.words[target]
            row["place"] = ranked.index(target) if target in words else 99
            length = len(text) if target in words else unknown_length
            row["keys"], row["saved"] = length + 1, 0
            for typed in range(len(text) if target in words else 0):
                fitting = [i for i in ranked if tokenizer.words[i].startswith(text[:typed])]
                if target in fitting[:3]:
                    row["saved"] = length - typed
                    break
            out.append(row)
    return out


@pytest.mark.parametrize("window", [1, 5, 64])
def test_equals_a_plain_reference(window, monkeypatch):
    monkeypatch.setattr(module, "_TILE", 7)
    monkeypatch.setattr(module, "_ROWS", 5)
    monkeypatch.setattr(held_out, "BATCH", 16)
    monkeypatch.setattr(module, "_WINDOWS", 2)
    tokenizer, people, table = random_world()
    found = evaluate(table, people, "test", tokenizer, window)
    rows = by_hand(tokenizer, people, table)
    typed = [row for row in rows if row["target"] != EOS]
    known = [row for row in typed if row["target"] != UNK]
    assert found.users == 7
    assert found.predictions == len(rows)
    assert found.words == len(typed)
    mean = np.mean
    assert found.perplexity == pytest.approx(math.exp(mean([r["nats"] for r in rows])), rel=1e-5)
    assert found.perplexity_known == pytest.approx(
        math.exp(mean([r["nats"] for r in rows if r["target"] != UNK])), rel=1e-5
    )
    assert found.top1 == pytest.approx(mean([r["place"] == 0 for r in typed]))
    assert found.top3 == pytest.approx(mean([r["place"] < 3 for r in typed]))
    assert found.top3_known == pytest.approx(mean([r["place"] < 3 for r in known]))
    assert found.oov_rate == pytest.approx(1 - len(known) / len(typed))
    saved = sum(r["saved"] for r in typed)
    assert found.keystrokes_saved == pytest.approx(saved / sum(r["keys"] for r in typed))
    assert found.keystrokes_saved_known == pytest.approx(saved / sum(r["keys"] for r in known))


def test_tiles_stay_small_whatever_the_number_of_tokens():
    tokenizer, people, table = random_world(words=3000, users=60)
    evaluate(table, people, "test", tokenizer, 20)
    assert table.largest <= module._ROWS * module._TILE


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity():
    tokenizer, people, _ = random_world()
    size = len(tokenizer.words)
    found = evaluate(Table(np.zeros((size, size))), people, "test", tokenizer, 20)
    assert found.perplexity == pytest.approx(size, rel=1e-5)
    assert found.over_users["perplexity"].quantiles == pytest.approx([size] * 19, rel=1e-5)
    # Constant scores earn three words, not all of them.
    assert found.top3_known < 0.3


def test_an_oracle_saves_all_letters_and_never_knows_unknown_words():
    tokenizer = Tokenizer(["hello", "there", "you"])
    people = People([[BOS, 4, 5, UNK, EOS]])
    table = np.zeros((7, 7))
    for before, after in ((BOS, 4), (4, 5), (5, UNK), (UNK, EOS)):
        table[before, after] = 50
    found = evaluate(Table(table), people, "test", tokenizer, 20)
    assert found.perplexity == pytest.approx(1)
    assert (found.top1, found.top1_known) == pytest.approx((2 / 3, 1))
    assert found.oov_rate == pytest.approx(1 / 3)
    assert found.keystrokes_saved_known == pytest.approx(10 / 12)
    assert found.keystrokes_saved == pytest.approx(10 / (12 + 13 / 3 + 1))


def test_a_diverged_model_earns_nothing():
    tokenizer, people, table = random_world()
    found = evaluate(Table(np.full(table.table.shape, np.nan)), people, "test", tokenizer, 20)
    assert found.top3 == 0
    assert found.keystrokes_saved == 0
    assert found.as_dict()["perplexity"] is None


def test_placeholders_and_pieces_of_unknown_words():
    kinds = ["placeholder", "word", "word", "subword", "subword"]
    tokenizer = Tokenizer(
        ["<number>", "hi", "ho", "▁kla", "tch"], kinds, specials=(PAD, UNK, BOS, EOS, 4)
    )
    people = People([[BOS, 5, 4, 7, 8, 6, EOS]])
    found = evaluate(Table(np.zeros((9, 9))), people, "test", tokenizer, 20)
    assert found.predictions == 6
    assert found.words == 3  # hi, klatch, ho
    assert found.oov_rate == pytest.approx(1 / 3)
    assert found.top3_known == 1  # only two words can be suggested
    assert found.top3 == pytest.approx(2 / 3)


def test_recall_by_public_frequency():
    tokenizer = Tokenizer([f"w{i:05d}" for i in range(12_000)])
    size = len(tokenizer.words)
    people = People([[BOS, 4, 5, 103, 104, 1003, 1004, 10_003, 10_004, 10_005, EOS]])

    class Unigram(Table):
        def scores(self, states, words):
            return self.table[words].repeat(len(states), 1)

    table = Unigram(np.log(tokenizer.unigram))
    found = evaluate(table, people, "test", tokenizer, 20)
    assert size == 12_004
    assert [bucket.words for bucket in found.buckets] == [3, 2, 2, 2]
    assert sum(bucket.share for bucket in found.buckets) == pytest.approx(1)
    assert found.buckets[0].top3 == pytest.approx(2 / 3)
    assert found.buckets[3].top3 == 0


def test_distributions_count_each_user_the_same():
    tokenizer = Tokenizer(["a", "bb"])
    table = np.zeros((6, 6))
    table[:, 4] = 2.0
    people = People([[BOS, *[4] * 30, EOS], [BOS, UNK, EOS], [], [BOS]])
    found = evaluate(Table(table), people, "test", tokenizer, 64)
    assert found.users == 2
    assert found.top3 == pytest.approx(30 / 31)
    spread = found.over_users["top3"]
    assert spread.mean == pytest.approx(0.5)
    assert spread.standard_error == pytest.approx(0.5)
    assert spread.quantiles[0] == pytest.approx(0.05)
    assert spread.quantiles[-1] == pytest.approx(0.95)


def test_a_sample_of_users_is_repeatable_and_limited():
    tokenizer, people, table = random_world(users=40)
    seen = []
    one = evaluate(
        table, people, "test", tokenizer, 20, max_users=10, seed=3,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert one == evaluate(table, people, "test", tokenizer, 20, max_users=10, seed=3)
    assert one != evaluate(table, people, "test", tokenizer, 20, max_users=10, seed=4)
    assert one.users == 10
    assert seen[-1] == (10, 10)
    short = evaluate(table, people, "test", tokenizer, 20, max_tokens_per_user=2)
    assert short.predictions <= 40


def test_results_are_plain_json():
    tokenizer, people, table = random_world()
    plain = evaluate(table, people, "test", tokenizer, 20).as_dict()
    again = json.loads(json.dumps(plain, allow_nan=False))
    assert len(again["over_users"]["top3"]["quantiles"]) == len(again["quantile_levels"]) == 19
    assert again["buckets"][0]["name"] == "1–100"


def test_nobody_to_evaluate_is_an_error():
    tokenizer, _, table = random_world()
    with pytest.raises(ValueError, match="no users"):
        evaluate(table, People([]), "test", tokenizer, 20)
    with pytest.raises(ValueError, match="typed nothing"):
        evaluate(table, People([[], [BOS]]), "test", tokenizer, 20)
    with pytest.raises(ValueError, match="max_users"):
        evaluate(table, People([[BOS, 4]] * 3), "test", tokenizer, 20, max_users=0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_scored_in_parts_is_the_model(tied):
    spec = ModelSpec("cifg_lstm", 50, 8, hidden_dim=12, tied=tied)
    parameters = models.initialise(spec, seed=1)
    scorer = ModelScorer(spec, parameters)
    states = scorer.states(np.arange(12).reshape(2, 6))[0]
    whole = models.scores(spec, parameters, states)
    ids = torch.tensor([40, 3, 17])
    assert torch.allclose(scorer.scores(states, slice(10, 30)), whole[:, 10:30], atol=1e-6)
    assert torch.allclose(scorer.scores(states, ids), whole[:, ids], atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, -70.0, 95.0])
@pytest.mark.parametrize("bias", [True, False])
def test_the_kernel_measures_what_tiles_do(monkeypatch, shift, bias):
    """Also where powers without a maximum taken off would vanish or overflow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    words = [f"w{i}" for i in range(171)]
    spec = ModelSpec("cifg_lstm", 175, 12, hidden_dim=20, projection_dim=12, output_bias=bias)
    parameters = models.initialise(spec, 0, None)
    random = torch.Generator().manual_seed(1)
    parameters[spec.output_table] = torch.randn(175, 12, generator=random)
    if bias:
        parameters["output_bias"] = torch.randn(175, generator=random) + shift
    people = People([np.random.default_rng(u).integers(1, 175, 60) for u in range(5)])

    def measure():
        return evaluate(ModelScorer(spec, parameters), people, "test", Tokenizer(words), 8)

    compiled = measure()
    monkeypatch.setattr(ModelScorer, "ranked", lambda *arguments: None)
    tiles = measure()
    torch.set_num_threads(threads)
    assert compiled.perplexity == pytest.approx(tiles.perplexity, rel=1e-5)
    one = 1.01 / tiles.predictions  # two all but equal scores may change places
    assert compiled.top3 == pytest.approx(tiles.top3, abs=one)
    assert compiled.keystrokes_saved == pytest.approx(tiles.keystrokes_saved, abs=one)


class PeopleAsTyped(People):
    def __init__(self, streams, codes):
        super().__init__(streams)
        self.codes = codes

    def typed(self, split, user):
        return np.array(self.codes[user], dtype=np.uint16)


def test_text_as_it_was_typed():
    """Two words, two marks, two emoji: 'London,' is typed twice, and once in lower case."""
    tokenizer = Tokenizer(["london", "in", ",", "!", "😂", "🙏"], ["word", "word", *["mark"] * 4])
    london, comma, laugh = 4, 6, 8
    table = np.zeros((10, 10))
    table[BOS, london] = 9  # suggested at once
    table[london, 7] = 1  # "!" is the likelier mark
    table[comma, 9] = 5  # 🙏 is the likelier emoji
    streams = [[BOS, london, comma, laugh, EOS], [BOS, london, UNK, EOS]]
    shown = 0x8000
    people = PeopleAsTyped(streams, [[0, shown | 8, 1, 2, 0], [0, 7, 5, 3]])
    found = evaluate(Table(table), people, "test", tokenizer, 20)
    assert (found.marks_top3, found.emoji_top1, found.emoji_top3) == (1, 0, 1)
    assert found.casing == 0.5
    assert found.keys_saved == pytest.approx((8 - 1) / (8 + 1 + 2 + 7 + 5 + 3))
    assert found.words == 3  # marks and emoji are none
    table[comma, 8] = 6  # the fourth place shows the laugh: one key for two
    found = evaluate(Table(table), people, "test", tokenizer, 20)
    assert (found.emoji_top1, found.keys_saved) == (1, pytest.approx(8 / 26))


def test_without_marks_or_knowledge_of_keys_nothing_is_said_of_them():
    tokenizer, people, table = random_world()
    found = evaluate(table, people, "test", tokenizer, 5).as_dict()
    assert [found[name] for name in as_typed.RATIOS] == [None] * 5
