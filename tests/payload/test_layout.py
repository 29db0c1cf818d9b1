from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import describe, gather, scatter_add
from pfl_lm.payload.plan import DENSE_KINDS, PayloadPlan

V, D = 60, 3
SPECIALS = (0, 1, 2, 3)
UNIGRAM = np.arange(V, 0, -1) / (V * (V + 1) / 2)


class Role(NamedTuple):
    kind: str
    shape: tuple[int, ...]


ROLES = {
    "embedding": Role("rows", (V, D)),
    "output_bias": Role("rows", (V,)),
    "layer": Role("dense", (4, D)),
    "layer_bias": Role("bias", (4,)),
}
FACTORS = {"layer.lora_a": Role("lora_a", (2, D)), "layer.lora_b": Role("lora_b", (4, 2))}
SIZES = {"all": 16, "lora": 14, "ffa_lora": 8, "biases": 4, "none": 0}


def plan_and_roles(dense: str, **more: object) -> tuple[PayloadPlan, dict[str, Role]]:
    return PayloadPlan(dense=dense, **more), ROLES | (FACTORS if "lora" in dense else {})


def model(roles: dict[str, Role], seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {n: draw.standard_normal(r.shape).astype(np.float32) for n, r in roles.items()}


@pytest.mark.parametrize("dense", SIZES)
@pytest.mark.parametrize(("rows", "count"), [("all", V), ("none", 0), (20, 20)])
def test_every_combination_holds_what_it_names(dense: str, rows: int | str, count: int) -> None:
    if (dense, rows) == ("none", "none"):
        pytest.skip("nothing would travel: refused in another test")
    plan, roles = plan_and_roles(dense, rows=rows)
    payload = choose(plan, roles, UNIGRAM, SPECIALS, seed=1, round=2)
    assert payload.dim == count * (D + 1) + SIZES[dense]
    stretches = [(s.offset, s.offset + s.size) for s in payload.segments]
    assert [end for _, end in stretches] == [*[b for b, _ in stretches[1:]], payload.dim]


@given(
    st.sampled_from(["all", "biases"]),
    st.one_of(st.sampled_from(["all", "none"]), st.integers(5, V - 1)),
    st.sampled_from(["uniform", "unigram"]),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_scatter_add_of_a_gather_doubles_exactly_the_payload(dense, rows, draw, seed, torch_too):
    plan, roles = plan_and_roles(dense, rows=rows, draw=draw)
    payload = choose(plan, roles, UNIGRAM, SPECIALS, seed, round=0)
    parameters = model(roles)
    before = {name: value.copy() for name, value in parameters.items()}
    held = {n: torch.from_numpy(v) for n, v in parameters.items()} if torch_too else parameters
    values = gather(held, payload)
    scatter_add(held, payload, values)
    np.testing.assert_array_equal(gather(held, payload), 2 * values)
    moved = sum(int((parameters[n] != before[n]).sum()) for n in parameters)
    assert moved == payload.dim  # and nothing else moved


@given(
    st.sampled_from(["all", "biases", "lora", "ffa_lora", "none"]),
    st.one_of(st.just("all"), st.integers(5, V - 1)),
    st.one_of(st.none(), st.just(1)),
    st.integers(0, 30),
)
def test_a_coordinate_has_one_place_in_all_rounds(dense, rows, layers, round):
    """What correlated noise follows from round to round: parameters in order, whatever travels."""
    plan, roles = plan_and_roles(dense, rows=rows, layers=None if dense == "none" else layers)
    payload = choose(plan, roles, UNIGRAM, SPECIALS, 1, round)
    parameters = model(roles)
    everything = choose(PayloadPlan(dense=dense), roles, UNIGRAM, SPECIALS, 1, 0)
    assert (everything.places, everything.dim) == (None, everything.reach)
    assert payload.reach == everything.reach
    places = np.arange(payload.dim) if payload.places is None else payload.places
    assert len(set(places.tolist())) == payload.dim
    assert (np.diff(places) > 0).all()
    whole = gather(parameters, everything)
    np.testing.assert_array_equal(gather(parameters, payload), whole[places])


def test_views_of_a_batch_are_the_parameters_by_name() -> None:
    payload = choose(PayloadPlan(rows=9), ROLES, UNIGRAM, SPECIALS, 0, 0)
    parameters = model(ROLES)
    values = gather(parameters, payload)
    batch = torch.from_numpy(values).expand(5, -1)
    views = payload.views(batch)
    assert views["embedding"].shape == (5, 9, D)
    np.testing.assert_array_equal(views["embedding"][4], parameters["embedding"][payload.rows])
    assert views["layer"].stride(0) == 0  # a view: no copy per device was made
    views = payload.views(values)
    assert np.shares_memory(views["layer"], values)


@given(st.integers(5, V - 1), st.sampled_from(["uniform", "unigram"]), st.integers(0, 10**6))
def test_rows_are_distinct_sorted_public_and_hold_the_specials(rows, draw, round):
    plan = PayloadPlan(rows=rows, draw=draw)
    payload = choose(plan, ROLES, UNIGRAM, SPECIALS, 3, round)
    assert payload.rows is not None
    assert len(payload.rows) == rows
    assert (np.diff(payload.rows) > 0).all()
    assert set(SPECIALS) <= set(payload.rows.tolist())
    again = choose(plan, ROLES, UNIGRAM, SPECIALS, 3, round)
    assert again.digest == payload.digest
    np.testing.assert_array_equal(again.rows, payload.rows)


def test_rounds_and_seeds_draw_different_rows_with_different_digests() -> None:
    plan = PayloadPlan(rows=20)
    drawn = [choose(plan, ROLES, UNIGRAM, SPECIALS, s, r) for s in range(3) for r in range(5)]
    assert len({p.digest for p in drawn}) == 15


def test_draw_does_not_depend_on_what_ran_before() -> None:
    """The stream is named by (seed, round): resuming needs nothing else."""
    plan = PayloadPlan(rows=20, draw="unigram")
    late = choose(plan, ROLES, UNIGRAM, SPECIALS, 0, 7).digest
    for round in range(7):
        choose(plan, ROLES, UNIGRAM, SPECIALS, 0, round)
    assert choose(plan, ROLES, UNIGRAM, SPECIALS, 0, 7).digest == late


@pytest.mark.parametrize("draw", ["uniform", "unigram"])
def test_sums_weighted_by_inclusion_are_unbiased(draw: str) -> None:
    """Horvitz–Thompson sums over the rows estimate sums over the vocabulary; plain ones do not."""
    plan = PayloadPlan(rows=12, draw=draw, temper=1.0)
    f = np.sqrt(np.arange(V))
    weighted, plain = [], []
    for round in range(4000):
        payload = choose(plan, ROLES, UNIGRAM, SPECIALS, 0, round)
        assert payload.rows is not None
        weighted.append((f[payload.rows] / payload.inclusion).sum())
        plain.append(f[payload.rows].mean() * V)
    error = np.std(weighted) / np.sqrt(len(weighted))
    assert abs(np.mean(weighted) - f.sum()) < 4 * error
    assert abs(np.mean(plain) - f.sum()) > 8 * error


def test_unigram_draw_prefers_frequent_words() -> None:
    plan = PayloadPlan(rows=12, draw="unigram", temper=1.0)
    seen = np.zeros(V)
    for round in range(500):
        seen[choose(plan, ROLES, UNIGRAM, SPECIALS, 0, round).rows] += 1
    assert seen[4:14].mean() > 2 * seen[-10:].mean()


def test_describe_states_the_cost_and_the_saving_in_noise() -> None:
    total = sum(int(np.prod(role.shape)) for role in ROLES.values())
    cost = describe(choose(PayloadPlan(rows=10), ROLES, UNIGRAM, SPECIALS, 0, 0), total)
    assert (cost.coordinates, cost.bytes) == (56, 224)
    assert cost.noise_norm_ratio == pytest.approx(np.sqrt(56 / total))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": "none", "dense": "none"}, "nothing would travel"),
        ({"rows": "some"}, "rows = 'some'"),
        ({"rows": 0}, "rows = 0"),
        ({"rows": True}, "rows = True"),
        ({"dense": "half"}, "dense = 'half'"),
        ({"draw": "private"}, "draw = 'private'"),
        ({"outside": "train"}, "outside = 'train'"),
        ({"rows": "none", "outside": "unk"}, "every word is outside"),
        ({"temper": 1.5}, "temper = 1.5"),
    ],
)
def test_plans_that_make_no_sense_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PayloadPlan(**arguments)


@pytest.mark.parametrize(
    ("plan", "roles", "message"),
    [
        (PayloadPlan(dense="lora"), ROLES, "state its rank"),
        (PayloadPlan(dense="all"), ROLES | FACTORS, "paid for twice"),
        (PayloadPlan(rows=4), ROLES, "at least 5"),
        (PayloadPlan(rows=V), ROLES, f"below the vocabulary's {V}"),
    ],
)
def test_plans_that_do_not_fit_the_model_are_refused(plan, roles, message) -> None:
    with pytest.raises(ValueError, match=message):
        choose(plan, roles, UNIGRAM, SPECIALS, 0, 0)


def test_values_of_another_dimension_are_refused() -> None:
    payload = choose(PayloadPlan(rows=9), ROLES, UNIGRAM, SPECIALS, 0, 0)
    with pytest.raises(ValueError, match=r"payload's is \(52,\)"):
        scatter_add(model(ROLES), payload, np.zeros(51, np.float32))


def test_layers_take_turns_on_a_public_schedule() -> None:
    roles = {f"layer{n}.{part}": Role("dense", (3, 3)) for n in range(2) for part in "ab"}
    roles |= {f"{name}_bias": Role("bias", (3,)) for name in list(roles)}
    plan = PayloadPlan(rows="none", layers=1)
    chosen = [choose(plan, roles, UNIGRAM, SPECIALS, 0, round) for round in range(8)]
    names = [{segment.name for segment in payload.segments} for payload in chosen]
    assert all(len(found) == 2 for found in names)  # a matrix and its bias
    assert set().union(*names[:4]) == set(roles) == set().union(*names[4:])
    again = choose(plan, roles, UNIGRAM, SPECIALS, 0, 5)
    assert again.digest == chosen[5].digest
    everything = choose(PayloadPlan(rows="none", layers=9), roles, UNIGRAM, SPECIALS, 0, 0)
    assert everything.dim == 4 * (9 + 3)


@pytest.mark.parametrize("dense", ["all", "biases", "lora", "none"])
@pytest.mark.parametrize("rows", ["none", 20, "all"])
@pytest.mark.parametrize("layers", [None, 1, 2, 3, 4, 5])
def test_no_round_has_fewer_coordinates_than_stated(dense, rows, layers) -> None:
    """By how little travels in any round a stream of noise is sized, in all of them."""
    roles = ROLES | {f"{n}.matrix": Role("dense", (2, n)) for n in range(3, 6)}
    roles |= {"3.matrix_bias": Role("bias", (2,))} | (FACTORS if dense == "lora" else {})
    if (dense, rows) == ("none", "none"):
        pytest.skip("nothing would travel: refused in another test")
    plan = PayloadPlan(rows=rows, dense=dense, layers=layers)
    chosen = [choose(plan, roles, UNIGRAM, SPECIALS, 0, round) for round in range(60)]
    fewest = chosen[0].fewest
    assert {payload.fewest for payload in chosen} == {fewest}
    assert fewest <= min(payload.dim for payload in chosen)  # of a stream: never too large
    if layers in (None, 1, 2):  # of four layers: no round meets one twice
        assert fewest == min(payload.dim for payload in chosen)


def test_directions_travel_as_coefficients() -> None:
    roles = {"layer0.a": Role("dense", (30, 40))}
    plan = PayloadPlan(rows="none", directions=5)
    payload = choose(plan, roles, UNIGRAM, SPECIALS, 0, 2)
    assert (payload.dim, payload.whole_dim, payload.whole.dim) == (5, 1200, 1200)
    parameters = {"layer0.a": np.zeros((30, 40), np.float32)}
    assert not gather(parameters, payload).any()
    scatter_add(parameters, payload, np.asarray([3, 0, 0, 4, 0], np.float32))
    assert np.linalg.norm(parameters["layer0.a"]) == pytest.approx(5, rel=0.1)
    assert payload.digest != choose(plan, roles, UNIGRAM, SPECIALS, 0, 3).digest
    with pytest.raises(ValueError, match="directions = 0"):
        PayloadPlan(directions=0)


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        (("biass", "lora_b"), "name kinds of dense parameters in a tuple, of dense, bias, side_"),
        (("rows",), "name kinds of dense parameters"),
        ("bias", "name kinds of dense parameters"),  # no comma, no tuple
        (("bias", "lora_b"), "needs a model with LoRA factors"),
        (("bias", "side_branch"), "needs a model with a side branch"),
    ],
)
def test_a_choice_of_ones_own_names_what_the_model_has(kinds, told, monkeypatch):
    monkeypatch.setitem(DENSE_KINDS, "own", kinds)
    with pytest.raises(ValueError, match=told):
        choose(PayloadPlan(dense="own"), ROLES, UNIGRAM, SPECIALS, seed=1, round=0)


def test_no_choice_pays_twice_for_a_matrix(monkeypatch):
    monkeypatch.setitem(DENSE_KINDS, "own", ("dense", "lora_b"))
    with pytest.raises(ValueError, match=r'"own" trains the matrices .* paid for twice'):
        choose(PayloadPlan(dense="own"), ROLES | FACTORS, UNIGRAM, SPECIALS, seed=1, round=0)
