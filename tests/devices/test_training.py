from __future__ import annotations

import ast
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pfl_lm import native
from pfl_lm.devices import candidates
from pfl_lm.devices import training as hot
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.processor import CPU
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train
from pfl_lm.dp.encoding import protect
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.sampler.random_bits import reproducible_bits
from pfl_lm.models import losses, models
from pfl_lm.models.compiled import block, recurrence, softmax
from pfl_lm.models.models import LoraSpec, ModelSpec
from pfl_lm.native import products
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import gather, scatter_add
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.streams import key, stream

V, D, T = 40, 8, 6
SPECIALS = (0, 1, 2, 3)
UNIGRAM = 0.9 * np.random.default_rng(0).dirichlet(np.ones(V)) + 0.1 / V
USERS = [10, 11, 12, 13]
LOCAL = LocalTraining(learning_rate=0.5, batch_size=2)


def spec_of(kind: str = "cifg_lstm", **more) -> ModelSpec:
    common = {"layers": 2, "hidden_dim": 10, "heads": 2, "feedforward_dim": 12, "context": T}
    return ModelSpec(kind, V, D, **(common | more))


def text_of(counts: tuple[int, ...] = (3, 0, 7, 5)) -> list[np.ndarray]:
    """Windows of devices of different sizes; the last window of each ends in padding."""
    draw = np.random.default_rng(1)
    found = [draw.integers(4, V, (count, T + 1)) for count in counts]
    for windows in found:
        windows[-1:, 4:] = 0
    return found


def setting(spec: ModelSpec, plan: PayloadPlan, seed: int = 0):
    parameters = models.initialise(spec, seed, UNIGRAM)
    draw = torch.Generator().manual_seed(seed)
    for name, value in parameters.items():
        if name.endswith("lora_b"):
            value.add_(0.1 * torch.randn(value.shape, generator=draw))
    payload = choose(plan, models.roles(spec), UNIGRAM, SPECIALS, seed=7, round=3)
    return parameters, payload, gather(parameters, payload)


def run(spec, parameters, payload, values, windows, local=LOCAL, users=USERS):
    return train(Task(spec, parameters, payload, values, local, UNIGRAM, 5, 3), windows, users)


PLANS = {
    "everything": ({}, PayloadPlan()),
    "all rows": ({}, PayloadPlan(dense="none")),
    "biases": ({}, PayloadPlan(rows="none", dense="biases")),
    "rows": ({}, PayloadPlan(rows=15, dense="all", draw="unigram")),
    "rows + lora": ({"lora": LoraSpec(2)}, PayloadPlan(rows=15, dense="lora", outside="skip")),
    "rows + ffa": ({"lora": LoraSpec(2)}, PayloadPlan(rows=15, dense="ffa_lora", outside="unk")),
    "side branch": ({"side_branch": 3}, PayloadPlan(rows="none", dense="side_branch")),
    "biases + side branch": ({"side_branch": 3}, PayloadPlan(rows=15, dense="biases_side_branch")),
    "untied rows": ({"tied": False}, PayloadPlan(rows=15, dense="none")),
    "no output bias": ({"output_bias": False}, PayloadPlan(rows=15)),
}


@pytest.mark.parametrize("kind", ["cifg_lstm", "lstm", "transformer"])
@pytest.mark.parametrize("loss", ["softmax", "sampled", "nce"])
@pytest.mark.parametrize("case", PLANS)
def test_devices_at_once_equal_one_at_a_time(kind: str, loss: str, case: str) -> None:
    """Within 1e-5 of updates of norm about 0.1 to 1: sums of float32 in another order."""
    more, plan = PLANS[case]
    spec = spec_of(kind, **more)
    parameters, payload, values = setting(spec, plan)
    local = replace(LOCAL, learning_rate=0.1, loss=loss, negatives=9, decay=0.9)
    updates, traces = run(spec, parameters, payload, values, text_of(), local)
    for k, windows in enumerate(text_of()):
        alone, trace = run(spec, parameters, payload, values, [windows], local, [USERS[k]])
        np.testing.assert_allclose(updates[k], alone[0], atol=1e-5)
        assert trace[0].loss == pytest.approx(traces[k].loss, abs=1e-5)
        assert (trace[0].tokens, trace[0].steps) == (traces[k].tokens, traces[k].steps)
    assert not updates[1].any()  # nothing typed, nothing learnt
    assert [t.steps for t in traces] == [2, 0, 4, 3]
    assert [t.tokens for t in traces] == [3 * T - 3, 0, 7 * T - 3, 5 * T - 3]
    norms = np.linalg.norm(updates, axis=1)
    np.testing.assert_allclose([t.update_norm for t in traces], norms, rtol=1e-5)


@pytest.mark.parametrize("kind", ["cifg_lstm", "lstm", "transformer"])
@pytest.mark.parametrize("case", ["everything", "rows + lora"])
@pytest.mark.parametrize("loss", ["softmax", "sampled"])
def test_the_fast_paths_change_nothing(kind: str, case: str, loss: str, monkeypatch) -> None:
    """C kernels, and later steps taken by one device after another."""
    more, plan = PLANS[case]
    spec = spec_of(kind, **more)
    held = setting(spec, plan)
    local = replace(LOCAL, loss=loss, negatives=9)
    compiled, _ = run(spec, *held, text_of(), local)
    for module in (products, recurrence, block, softmax, candidates):
        monkeypatch.setattr(module, "supports", lambda *tensors: False)
    plain, _ = run(spec, *held, text_of(), local)
    np.testing.assert_allclose(compiled, plain, atol=1e-5)
    monkeypatch.setattr(hot, "CACHE_BYTES", 1)
    one_by_one, _ = run(spec, *held, text_of(), local)
    np.testing.assert_allclose(one_by_one, plain, atol=1e-5)


@pytest.mark.parametrize("kind", ["cifg_lstm", "lstm"])
@pytest.mark.parametrize("case", ["everything", "rows + lora"])
def test_the_kernels_give_a_device_the_same_bits_beside_any_others(kind: str, case: str) -> None:
    if native.load("products") is None:
        pytest.skip("no C kernels: no compiler, or PFL_LM_NATIVE=0")
    more, plan = PLANS[case]
    spec = spec_of(kind, **more)
    held = setting(spec, plan)
    equal = text_of((4, 4, 4))  # as many windows: nothing is padded for a neighbour's sake
    together, _ = run(spec, *held, equal, users=USERS[:3])
    for k, windows in enumerate(equal):
        alone, _ = run(spec, *held, [windows], users=[USERS[k]])
        np.testing.assert_array_equal(alone[0], together[k])


class PlainLSTM(nn.Module):
    """The same model as a torch user writes it; parameters in the payload's order."""

    def __init__(self, p: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.embedding = nn.Parameter(p["embedding"].clone())
        self.output = nn.Parameter(p["output"].clone())
        self.output_bias = nn.Parameter(p["output_bias"].clone())
        self.lstm = nn.LSTM(D, 10, 1, batch_first=True)
        self.project = nn.Linear(10, D)
        with torch.no_grad():
            self.lstm.weight_ih_l0.copy_(p["layer0.input"])
            self.lstm.weight_hh_l0.copy_(p["layer0.recurrent"])
            self.lstm.bias_ih_l0.copy_(p["layer0.input_bias"])
            self.lstm.bias_hh_l0.zero_()
            self.project.weight.copy_(p["projection"])
            self.project.bias.copy_(p["projection_bias"])
        self.lstm.bias_hh_l0.requires_grad_(False)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        vectors = self.project(self.lstm(F.embedding(words, self.embedding))[0])
        return F.linear(vectors, self.output, self.output_bias)

    def flat(self) -> np.ndarray:
        order = [self.embedding, self.output, self.output_bias, self.lstm.weight_ih_l0]
        order += [self.lstm.bias_ih_l0, self.lstm.weight_hh_l0, *self.project.parameters()]
        return torch.cat([p.detach().reshape(-1) for p in order]).numpy()


def test_full_payload_without_noise_is_federated_averaging() -> None:
    spec = spec_of("lstm", tied=False, layers=1)
    parameters, payload, values = setting(spec, PayloadPlan())
    text = text_of((4, 6, 3))
    updates, _ = run(spec, parameters, payload, values, text, users=[0, 1, 2])
    ours = values + updates.mean(0)

    # FedAvg, written out.
    theirs = np.zeros_like(values)
    for user, windows in enumerate(text):
        model = PlainLSTM(parameters)
        sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        order = stream(5, "examples", 3, user).permutation(len(windows))
        for start in range(0, len(windows), 2):
            batch = torch.from_numpy(windows[order[start : start + 2]])
            scores = model(batch[:, :-1]).flatten(0, 1)
            sgd.zero_grad()
            F.cross_entropy(scores, batch[:, 1:].flatten(), ignore_index=0).backward()
            sgd.step()
        theirs += model.flat() / len(text)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert np.abs(ours - values).max() > 1e-2


def reference_step(spec, parameters, payload, windows, rate: float, clip: float | None):
    """One SGD step on all windows by plain autograd through every parameter of the model.

    The scores' slopes come first; then they go to the hidden vectors as they are, and to rows and
    biases with a candidate's multiplied by the probability that its row travels.
    """
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    words, targets = (torch.from_numpy(windows[:, cut]) for cut in (slice(-1), slice(1, None)))
    vectors = models.hidden(spec, leaves, leaves["embedding"][words][None])[0]
    table, bias = leaves[spec.output_table], leaves["output_bias"]
    scores = (vectors @ table.T + bias).detach().requires_grad_()
    rows = torch.from_numpy(payload.rows)
    inclusion = torch.ones(V)
    inclusion[rows] = torch.from_numpy(payload.inclusion).float()
    weighted = scores[..., rows] - inclusion[rows].log()
    own = scores.gather(-1, targets[..., None])
    weighted = weighted.masked_fill(rows == targets[..., None], -torch.inf)
    loss = torch.cat([weighted, own], -1).logsumexp(-1) - own[..., 0]
    loss = loss[targets != 0].mean()
    (slopes,) = torch.autograd.grad(loss, scores)
    into_rows = torch.where(F.one_hot(targets, V) == 1, slopes, slopes * inclusion)
    surrogate = (vectors * (slopes @ table.detach())).sum()  # linear: its gradient is the slopes'
    surrogate = surrogate + ((vectors.detach() @ table.T + bias) * into_rows).sum()
    names = [s.name for s in payload.segments]
    found = torch.autograd.grad(surrogate, [leaves[n] for n in names])
    gradients = dict(zip(names, found, strict=True))
    gradient = gather(gradients, payload)
    norm = np.linalg.norm(gradient)
    return -rate * gradient * (1 if clip is None else min(1, clip / norm)), loss.item()


@pytest.mark.parametrize("kind", ["cifg_lstm", "lstm", "transformer"])
@pytest.mark.parametrize("dense", ["all", "lora", "ffa_lora", "biases", "biases_side_branch"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_partial_payload_is_autograd_restricted_to_it(kind, dense, clip) -> None:
    parts = {"lora": LoraSpec(2)} if "lora" in dense else {}
    spec = spec_of(
        kind, **parts, side_branch=3 if "side_branch" in dense else 0, tied=kind == "lstm"
    )
    parameters, payload, values = setting(spec, PayloadPlan(rows=15, dense=dense, draw="unigram"))
    windows = text_of((5,))[0]
    expected, loss = reference_step(spec, parameters, payload, windows, 0.5, clip)
    local = replace(LOCAL, batch_size=5, gradient_clip=clip)
    updates, traces = run(spec, parameters, payload, values, [windows], local, [0])
    np.testing.assert_allclose(updates[0], expected, atol=2e-6)
    assert traces[0].loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("kind", ["cifg_lstm", "lstm", "transformer"])
@pytest.mark.parametrize("case", ["everything", "rows + lora"])
@pytest.mark.parametrize("compiled", [True, False])
def test_bfloat16_products_give_nearly_the_same_update(
    kind: str, case: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch, and by the kernels, on a processor that must emulate the instruction too."""
    if compiled and native.load("products") is None:
        pytest.skip("no C kernels: no compiler, or PFL_LM_NATIVE=0")
    monkeypatch.setattr(products, "has_bfloat16", lambda: compiled)
    more, plan = PLANS[case]
    spec = spec_of(kind, **more)
    held = setting(spec, plan)
    local = replace(LOCAL, learning_rate=0.1)
    exact, _ = run(spec, *held, text_of(), local)
    low, traces = run(spec, *held, text_of(), replace(local, precision="bfloat16"))
    assert low.dtype == np.float32
    error = np.linalg.norm(low - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.2  # a ReLU near its corner may fall on the other side
    assert all(np.isfinite(t.loss) for t in traces)


def test_values_received_are_what_is_trained() -> None:
    """Not the copy that lies on the device: the payload's coordinates are the server's word."""
    spec = spec_of()
    parameters, payload, values = setting(spec, PayloadPlan(rows=15))
    moved = values + 0.01
    there = {name: value.clone() for name, value in parameters.items()}
    scatter_add(there, payload, np.full_like(values, 0.01))
    expected, _ = run(spec, there, payload, gather(there, payload), text_of())
    got, _ = run(spec, parameters, payload, moved, text_of())
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_the_model_on_the_device_is_left_as_it_was() -> None:
    spec = spec_of("transformer")
    parameters, payload, values = setting(spec, PayloadPlan())
    before = {name: value.clone() for name, value in parameters.items()}
    received = values.copy()
    run(spec, parameters, payload, values, text_of())
    assert all(torch.equal(parameters[name], before[name]) for name in before)
    np.testing.assert_array_equal(values, received)


def test_repeating_is_bit_equal_and_other_seeds_differ() -> None:
    spec = spec_of("transformer", lora=LoraSpec(2))
    held = setting(spec, PayloadPlan(rows=15, dense="lora"))
    local = replace(LOCAL, loss="nce", negatives=9)
    first, _ = run(spec, *held, text_of(), local)
    second, _ = run(spec, *held, text_of(), local)
    assert first.tobytes() == second.tobytes()
    other, _ = train(Task(spec, *held, local, UNIGRAM, 6, 3), text_of(), USERS)
    assert first.tobytes() != other.tobytes()


def test_updates_follow_the_order_of_the_devices() -> None:
    spec = spec_of()
    held = setting(spec, PayloadPlan(rows=15))
    updates, traces = run(spec, *held, text_of())
    backwards, other = run(spec, *held, text_of()[::-1], users=USERS[::-1])
    np.testing.assert_allclose(backwards[::-1], updates, atol=1e-6)
    assert [t.user for t in other[::-1]] == [t.user for t in traces] == USERS


class TestOutside:
    """A device's words that are not among the round's rows."""

    spec = spec_of()

    def updates(self, windows: np.ndarray, outside: str, loss: str = "softmax") -> np.ndarray:
        held = setting(self.spec, PayloadPlan(rows=15, outside=outside))
        local = replace(LOCAL, loss=loss, negatives=9)
        return run(self.spec, *held, [windows], local, [0])[0][0]

    def words(self) -> tuple[np.ndarray, np.ndarray]:
        """Windows, and which of their words are in the payload."""
        windows = text_of((6,))[0]
        rows = setting(self.spec, PayloadPlan(rows=15))[1].rows
        return windows, np.isin(windows, rows)

    def test_unk_is_training_on_the_replaced_words(self) -> None:
        windows, inside = self.words()
        replaced = np.where(inside, windows, 1)
        np.testing.assert_array_equal(
            self.updates(windows, "unk"), self.updates(replaced, "frozen")
        )

    def test_skip_leaves_such_targets_out_and_frozen_does_not(self) -> None:
        windows, inside = self.words()
        window = windows[:1].copy()
        hidden = window.copy()
        last = int(np.flatnonzero(~inside[0])[-1])
        assert last > 1
        window[0, last + 1 :] = 0  # the window now ends in a target outside the rows
        hidden[0, last:] = 0  # … and here that target is missing
        skipped = self.updates(window, "skip")
        assert not np.array_equal(self.updates(window, "frozen"), self.updates(hidden, "frozen"))
        # The share of a target stays 1 / all targets: a public rule, whatever is skipped.
        kept = (inside[0, 1:last]).sum()
        assert kept > 0
        assert np.abs(skipped).max() > 0

    @pytest.mark.parametrize("loss", ["softmax", "sampled", "nce"])
    def test_text_wholly_outside_trains_the_shared_part_at_most(self, loss: str) -> None:
        rows = setting(self.spec, PayloadPlan(rows=15))[1].rows
        outside = np.setdiff1d(np.arange(V), rows)
        windows = np.random.default_rng(0).choice(outside, (2, T + 1))
        assert not self.updates(windows, "skip", loss).any()
        assert self.updates(windows, "frozen", loss).any()


def test_tokens_are_capped_per_device() -> None:
    spec = spec_of()
    held = setting(spec, PayloadPlan(rows=15))
    capped = replace(LOCAL, max_tokens=2 * T + 2)
    updates, traces = run(spec, *held, text_of(), capped)
    assert [t.tokens for t in traces] == [14, 0, 14, 14]
    shorter = [w[:3].copy() for w in text_of()]
    for windows in shorter:
        windows[2:, 3:] = 0
    expected, _ = run(spec, *held, shorter)
    np.testing.assert_array_equal(updates, expected)


def test_steps_continue_over_epochs_and_epochs_reshuffle() -> None:
    spec = spec_of()
    held = setting(spec, PayloadPlan(rows=15))
    twice, traces = run(spec, *held, text_of(), replace(LOCAL, epochs=2))
    assert [t.steps for t in traces] == [4, 0, 8, 6]
    steps, traces = run(spec, *held, text_of(), replace(LOCAL, epochs=None, steps=4))
    assert [t.steps for t in traces] == [4, 0, 4, 4]
    np.testing.assert_allclose(steps[0], twice[0], atol=1e-6)  # four steps are its two epochs


def test_groups_hold_every_device_once_and_like_with_like() -> None:
    sizes = np.random.default_rng(0).integers(0, 50, 23)
    groups = hot.groups(sizes, 5)
    assert sorted(np.concatenate(groups)) == list(range(23))
    assert [len(g) for g in groups] == [5, 5, 5, 5, 3]
    assert all(sizes[a].min() >= sizes[b].max() for a, b in itertools.pairwise(groups))


@pytest.mark.parametrize("method", ["backpropagation", "zeroth_order", "forward_only"])
def test_updates_weighted_by_a_devices_own_tokens(method: str) -> None:
    """Times min(1, tokens / cap): 15, 0, 39 and 27 target tokens of 30, of which 20 count."""
    spec = spec_of()
    plan = PayloadPlan(rows=15, directions=5 if method == "zeroth_order" else None)
    held = setting(spec, plan)
    local = replace(LOCAL, learning_rate=0.1, method=method, max_tokens=20)
    plain, traces = run(spec, *held, text_of(), local)
    weighted, lighter = run(spec, *held, text_of(), replace(local, full_weight_tokens=30))
    factors = np.float32([15 / 30, 1, 20 / 30, 20 / 30])
    np.testing.assert_allclose(weighted, plain * factors[:, None], rtol=1e-6)
    np.testing.assert_allclose(
        [trace.update_norm for trace in lighter],
        [trace.update_norm * f for trace, f in zip(traces, factors, strict=True)],
        rtol=1e-6,
    )
    assert [trace.tokens for trace in lighter] == [trace.tokens for trace in traces]
    whole, _ = run(spec, *held, text_of(), replace(local, full_weight_tokens=10))
    np.testing.assert_array_equal(whole, plain)


@pytest.mark.parametrize("cap", [1, 30, 10**6])
def test_a_weight_before_the_clip_leaves_the_sensitivity(cap: int) -> None:
    """However long a text, what a device adds to the sum is at most the clip norm."""
    spec = spec_of()
    held = setting(spec, PayloadPlan())
    local = replace(LOCAL, learning_rate=50.0, full_weight_tokens=cap)
    updates, _ = run(spec, *held, text_of((3, 1, 40, 5)), local)
    grid = Grid(updates.shape[1], 0.5, 8.0, 40)
    vectors, _ = protect(updates, grid, None, reproducible_bits(key(1)))
    assert (vectors.astype(object) ** 2).sum(1).max() <= grid.norm_bound_squared


def test_devices_at_once_fits_the_budget() -> None:
    spec = ModelSpec("lstm", 50_000, 96, hidden_dim=670, tied=False, lora=LoraSpec(8))
    plain = replace(spec, lora=None)
    some = choose(
        PayloadPlan(rows=2000, dense="lora"),
        models.roles(spec),
        np.full(50_000, 1 / 50_000),
        SPECIALS,
        0,
        0,
    )
    everything = choose(
        PayloadPlan(), models.roles(plain), np.full(50_000, 1 / 50_000), SPECIALS, 0, 0
    )
    local = LocalTraining(learning_rate=0.1, loss="sampled")
    assert hot.devices_at_once(plain, everything, local) == 1
    assert 1 < hot.devices_at_once(spec, some, local) <= 16
    small = replace(CPU, own_bytes=16 << 20)
    tight = hot.devices_at_once(spec, some, local, small)
    bounded = replace(local, gradient_clip=1.0)
    assert hot.devices_at_once(spec, some, bounded, small) <= tight // 2 + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate = 0.0"),
        ({"epochs": 1, "steps": 4}, "either epochs or steps"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"max_tokens": 0}, "max_tokens = 0"),
        ({"full_weight_tokens": 0}, "full_weight_tokens = 0"),
        ({"decay": 1.5}, "decay = 1.5"),
        ({"gradient_clip": -1.0}, "gradient_clip = -1.0"),
        ({"loss": "hinge"}, "loss = 'hinge'"),
        ({"precision": "int8"}, "precision = 'int8'"),
    ],
)
def test_training_that_makes_no_sense_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LOCAL, **change)


def test_the_server_cannot_see_traces() -> None:
    """No module of the server names `Trace` or imports the local training."""
    server = Path(hot.__file__).parents[1] / "server"
    for file in server.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert "Trace" not in {alias.name for alias in node.names}, file.name
                assert node.module != "pfl_lm.devices.training", file.name


def test_candidates_are_one_public_draw_for_everybody() -> None:
    """Named by seed, round and step: the devices that happen to be trained do not matter."""
    names = [("candidates", 3, step) for step in range(2)]
    first, second = (
        losses.draw_for_nce(9, np.arange(V), UNIGRAM, stream(5, *name)).words for name in names
    )
    assert not np.array_equal(first, second)
