"""Figures by public group: as long an answer, the least noise, intervals that hold, the rule."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.queries.comparison import (
    CELLS,
    PRIMARY,
    RANGES,
    Estimate,
    Measured,
    answer,
    comparison_query,
    measure,
    weights,
)
from pfl_lm.queries.groups import OTHER, blocks, noise_factor, permitted, place_of, split
from pfl_lm.queries.labels import read_labels
from pfl_lm.queries.launch_rule import LaunchQuestion, decide, plan
from pfl_lm.queries.query import Answer, Query
from pfl_lm.text.population import PopulationStore
from tests.queries.conftest import USERS, policy_of

GROUPS = ("low", "middle", "high")
SIZES = (2_000, 1_500, 1_000)
DEVIATION, RUNS = 8.0, 200


def drawn(random: np.random.Generator, means: tuple[float, ...], spread: float = 0.1) -> np.ndarray:
    """Return noisy sums of groups of users whose measures all differ alike."""
    count, by_measure = weights()
    rows = []
    for size, mean in zip(SIZES, means, strict=True):
        x = np.clip(random.normal(mean, spread, size) / RANGES[PRIMARY], -1, 1)
        row = [count * size]
        for w, v in by_measure.values():
            row += [w * x.sum(), v * (x * x).sum()]
        rows.append(row)
    own = np.array(rows) * math.sqrt(0.5)
    exact = np.concatenate([own.sum(axis=0), own.ravel()])
    return exact + random.normal(0, DEVIATION, len(exact))


def drawn_alike(gain: float) -> dict[str, Estimate]:
    """Return estimates that leave no doubt of a gain by every measure."""
    return {name: Estimate(gain, 1e-6, 0.1) for name in RANGES}


class TestAnswer:
    query = comparison_query(1, GROUPS)
    differences = st.lists(st.floats(-1, 1), min_size=len(RANGES), max_size=len(RANGES))

    @given(differences, st.integers(0, 2))
    def test_it_is_as_long_as_without_groups(self, values: list[float], group: int) -> None:
        """So zeroing a device moves the sum as far as without: the sensitivity is the same."""
        figures = dict(zip(RANGES, values, strict=True))
        by_group, plain = answer(figures, group), answer(figures)
        assert self.query.refusal(by_group) is None
        assert self.query.norm == comparison_query(1).norm == 1.0
        length = float(np.linalg.norm(self.query.vectors([by_group])[0]))
        assert length == pytest.approx(float(np.linalg.norm(plain.values)), rel=1e-6)
        assert length <= self.query.norm * (1 + 1e-6)

    def test_it_fills_the_cells_of_all_and_of_its_own_group(self) -> None:
        filled = answer(dict.fromkeys(RANGES, 0.1), 1).cells.tolist()
        assert filled == [*range(CELLS), *range(2 * CELLS, 3 * CELLS)]
        assert {self.query.labels[cell].split(":")[0] for cell in filled[CELLS:]} == {"middle"}

    def test_a_device_that_fills_two_groups_is_refused_and_counts_nothing(self) -> None:
        first, second = (answer(dict.fromkeys(RANGES, 0.1), group) for group in (0, 2))
        both = Answer(
            np.concatenate([first.cells[CELLS:], second.cells[CELLS:]]),
            np.concatenate([first.values[CELLS:], second.values[CELLS:]]),
        )
        assert self.query.refusal(both) == "cells of 2 groups are filled"
        assert not self.query.vectors([both]).any()

    @pytest.mark.parametrize("groups", [((0, 3), (2, 4)), ((3, 12),), ((3, 2),)])
    def test_groups_that_overlap_or_lie_outside_are_no_query(self, groups: tuple) -> None:
        with pytest.raises(ValueError, match="groups"):
            Query("letters", "abcdefghij", 3, groups=groups)

    def test_a_question_without_groups_has_the_digest_that_it_had(self) -> None:
        plain = comparison_query(1)
        assert plain.digest != self.query.digest
        assert replace(plain, groups=()).digest == plain.digest


class TestNoise:
    @pytest.mark.parametrize("groups", [2, 3, 10])
    def test_no_other_share_keeps_the_larger_deviation_as_small(self, groups: int) -> None:
        """Least squares at every share a of the block of all, by its own covariance."""
        worst = {}
        for a in np.linspace(0, 0.98, 99):
            design = np.vstack([math.sqrt(a) * np.ones(groups), math.sqrt(1 - a) * np.eye(groups)])
            covariance = np.linalg.inv(design.T @ design)
            worst[a] = math.sqrt(max(covariance.sum(), covariance[0, 0]))
        assert min(worst, key=lambda a: worst[a]) == pytest.approx(0.5)
        assert min(worst.values()) == pytest.approx(noise_factor(groups))
        assert noise_factor(groups) < math.sqrt(2)

    def test_the_split_is_least_squares_and_groups_add_up_to_the_whole(self) -> None:
        sums = np.random.default_rng(1).normal(size=4 * CELLS)
        design = math.sqrt(0.5) * np.vstack([np.ones(3), np.eye(3)])
        expected = np.linalg.lstsq(design, sums.reshape(4, CELLS), rcond=None)[0]
        whole, by_group = split(sums, 3)
        np.testing.assert_allclose(by_group, expected, atol=1e-12)
        np.testing.assert_allclose(whole, by_group.sum(axis=0), atol=1e-12)

    def test_the_noise_that_comes_is_the_noise_that_is_said(self) -> None:
        noise = np.random.default_rng(2).normal(0, DEVIATION, (4, 50_000)).ravel()
        whole, by_group = split(noise, 3)
        for row in (whole, *by_group):
            assert row.std() == pytest.approx(DEVIATION * noise_factor(3), rel=0.03)

    def test_without_groups_nothing_changes(self) -> None:
        whole, by_group = split(np.arange(9.0), 0)
        assert whole.tolist() == list(range(9))
        assert len(by_group) == 0
        assert noise_factor(0) == 1.0
        assert blocks(CELLS, 0) == ()


class TestIntervals:
    def test_those_of_a_measures_groups_hold_all_at_once_in_95_of_100_runs(self) -> None:
        random, means = np.random.default_rng(3), (0.02, 0.0, -0.03)
        held, held_whole = 0, 0
        mean = float(np.dot(SIZES, means)) / sum(SIZES)
        for _ in range(RUNS):
            found = measure(drawn(random, means), DEVIATION, GROUPS)
            ends = [found.groups[g][PRIMARY].interval(found.confidence) for g in GROUPS]
            held += all(low <= m <= high for m, (low, high) in zip(means, ends, strict=True))
            widths = [high - low for low, high in ends]
            assert widths == sorted(widths)  # the groups shrink
            low, high = found.whole[PRIMARY].interval(0.95)
            held_whole += low <= mean <= high
        # The mean of the users who were drawn is what an interval holds: spread of users counts.
        for times in (held, held_whole):
            assert times >= 0.95 * RUNS - 3 * math.sqrt(RUNS * 0.05 * 0.95)

    def test_a_group_of_too_few_phones_tells_nothing_and_the_others_do(self) -> None:
        random = np.random.default_rng(4)
        sums = drawn(random, (0.0, 0.0, 0.0))
        sums[:CELLS] -= sums[3 * CELLS :]
        sums[3 * CELLS :] = random.normal(0, DEVIATION, CELLS)
        found = measure(sums, DEVIATION, GROUPS)
        assert found.groups["high"] is None
        assert found.groups["low"] is not None
        rule = LaunchQuestion(by_group=True, no_group_worse=True)
        launched = decide(rule, replace(found, whole=drawn_alike(0.1)), DEVIATION)
        assert launched.verdict == "launch"
        assert "Too few phones tell whether it is worse for high" in launched.reason


class TestRule:
    question = LaunchQuestion(gain=0.02, by_group=True, no_group_worse=True)

    def verdicts(self, means: tuple[float, ...], question: LaunchQuestion) -> list[str]:
        random, noise = np.random.default_rng(5), DEVIATION * noise_factor(3)
        found = (measure(drawn(random, means), DEVIATION, GROUPS) for _ in range(RUNS))
        return [decide(question, each, noise).verdict for each in found]

    def test_equal_models_are_hardly_ever_launched(self) -> None:
        launched = self.verdicts((0.0, 0.0, 0.0), self.question).count("launch") / RUNS
        assert launched <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)

    def test_one_that_is_worth_it_and_worse_for_none_is_hardly_ever_rejected(self) -> None:
        rejected = self.verdicts((0.03, 0.0305, 0.0), self.question).count("do not launch") / RUNS
        assert rejected <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)

    def test_one_that_costs_a_group_is_rejected_only_where_the_rule_says_so(self) -> None:
        means = (0.15, 0.15, -0.15)
        assert self.verdicts(means, self.question).count("do not launch") > 0.95 * RUNS
        loose = replace(self.question, no_group_worse=False)
        assert self.verdicts(means, loose).count("launch") > 0.95 * RUNS

    def test_the_reason_names_the_group(self) -> None:
        found = measure(drawn(np.random.default_rng(6), (0.2, 0.2, -0.2)), DEVIATION, GROUPS)
        assert "for the group high" in decide(self.question, found, DEVIATION).reason

    def test_the_plan_says_what_groups_change_before_anybody_is_asked(self) -> None:
        stated = plan(self.question, 100_000, DEVIATION * noise_factor(3), GROUPS)
        assert "the noise on every figure 22% larger" in stated
        assert "a group of fewer than about 310 phones tells nothing" in stated
        assert "lose log-loss in one of them is not launched" in stated
        assert "group" not in plan(LaunchQuestion(), 100_000, DEVIATION)

    def test_a_rule_about_groups_needs_groups(self) -> None:
        with pytest.raises(ValueError, match="no_group_worse"):
            LaunchQuestion(no_group_worse=True)

    def test_without_groups_all_is_as_it_was(self) -> None:
        assert Measured(None).confidence == 0.95


class TestPolicy:
    @pytest.mark.parametrize("labels", [("one",), ("a", "a"), ("a", ""), ("a", "b\tc")])
    def test_labels_that_name_no_groups_are_refused(self, labels: tuple[str, ...]) -> None:
        with pytest.raises(ValueError, match="public_labels"):
            replace(policy_of(), public_labels=labels)

    def test_a_policy_without_labels_permits_no_groups(self) -> None:
        with pytest.raises(ValueError, match=r"public_labels = \["):
            permitted(policy_of())
        assert permitted(replace(policy_of(), public_labels=GROUPS)) == GROUPS

    def test_a_device_without_a_label_is_another_or_is_told_what_to_state(self) -> None:
        assert place_of(None, (*GROUPS, OTHER), "--group") == 3
        with pytest.raises(ValueError, match="state one of low, middle, high"):
            place_of(None, GROUPS, "--group")


ROWS = [f"u{user}\t{GROUPS[user % 3]}" for user in range(USERS)]


class TestTable:
    def read(self, tmp_path: Path, lines: list[str], store: PopulationStore, *more: str) -> list:
        (tmp_path / "groups.tsv").write_text("\n".join(["user\tgroup", *lines]) + "\n")
        path = tmp_path / "groups.tsv"
        found = read_labels(path, (*GROUPS, *more), store, "train")
        assert found.source is not None
        assert found.source["file"] == "groups.tsv"
        return found.stated.tolist()

    def test_users_are_found_by_their_ids(self, tmp_path: Path, store: PopulationStore) -> None:
        """In whatever order, and beside users of other splits."""
        places = self.read(tmp_path, ["nobody\tlow", *reversed(ROWS)], store)
        assert sorted(places) == sorted(user % 3 for user in range(USERS))
        assert self.read(tmp_path, ROWS, store) == places

    def test_users_without_a_row(self, tmp_path: Path, store: PopulationStore) -> None:
        with pytest.raises(ValueError, match=r"groups\.tsv: 1 of 300 train users have no row"):
            self.read(tmp_path, ROWS[1:], store)
        assert self.read(tmp_path, ROWS[1:], store, OTHER).count(3) == 1

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([*ROWS, "u0\tlow"], "user 'u0' is there twice"),
            ([*ROWS, "u0\thuge"], "'huge' is none of the policy's public_labels"),
            ([*ROWS, "u0"], ":302: expected user and group"),
            (["stranger\tlow"], "names no user"),
        ],
    )
    def test_a_wrong_table_is_refused_by_line(
        self, tmp_path: Path, store: PopulationStore, rows: list[str], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            self.read(tmp_path, rows, store)

    def test_another_header(self, tmp_path: Path, store: PopulationStore) -> None:
        (tmp_path / "groups.tsv").write_text(json.dumps({"u0": "low"}))
        with pytest.raises(ValueError, match="first line"):
            read_labels(tmp_path / "groups.tsv", GROUPS, store, "train")
