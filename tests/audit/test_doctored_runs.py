"""Six runs that train without complaint and break their promise; the audit names each."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.mechanism.harness import everybody_reports
from pfl_lm.audit.mechanism.rebuild import rebuild_context
from pfl_lm.audit.mechanism.sum_tests import sensitivity
from pfl_lm.cli import app
from pfl_lm.dp.sampler.random_bits import reproducible_bits
from pfl_lm.run import availability, simulate
from pfl_lm.run import privacy as run_privacy
from pfl_lm.run import round as privacy_path
from pfl_lm.secagg import rounds
from pfl_lm.secagg.ideal import IdealAggregator
from pfl_lm.streams import key


def failures(run, *parts: str) -> set[str]:
    """Audit the named parts of a run by the verb; return the names of the findings that fail.

    The exit status is 0 where none does, and else 1.
    """
    chosen = [argument for name in parts for argument in ("--part", name)]
    done = CliRunner().invoke(app, ["audit", str(run), "--phrase-rounds", "0", *chosen])
    told = json.loads((run / "audit.json").read_text())
    found = {
        finding["name"]
        for part in told["parts"].values()
        for finding in part["findings"]
        if finding["holds"] is False
    }
    assert done.exit_code == (1 if found else 0), done.output
    assert all(name in " ".join(done.output.split()) for name in found)
    assert told["holds"] is not bool(found)
    return found


def test_an_honest_run_fails_nothing(honest_run):
    assert failures(honest_run, "ledger", "mechanism", "attack") == set()


def test_noise_off(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        privacy_path, "cohort_noise", lambda share, reports, dim, bits: np.zeros(dim, np.int64)
    )
    found = failures(tiny_run(tmp_path), "ledger", "mechanism", "attack")
    assert {"noise on the sum", "noise after dropout"} <= found
    assert "attack by one who knows who took part" in found


def test_clip_skipped_for_one_device_in_a_hundred(tiny_run, tmp_path, monkeypatch):
    genuine, seen = privacy_path.protect, [0]

    def protect(updates, grid, share, bits):
        vectors, clipped = genuine(updates, grid, share, bits)
        for row in range(len(updates)):
            seen[0] += 1
            if seen[0] % 100 == 0:
                scaled = np.nan_to_num(updates[row].astype(np.float64) * grid.scale)
                vectors[row] = np.clip(np.rint(scaled), -(2**40), 2**40).astype(np.int64)
        return vectors, clipped

    monkeypatch.setattr(privacy_path, "protect", protect)
    found = failures(tiny_run(tmp_path), "ledger", "mechanism")
    assert found == {"no device moves the sum by more than the sensitivity"}


@pytest.mark.parametrize("steps", [4.0, 16.0])
def test_a_device_that_moves_the_sum_twice_as_far_on_any_grid(
    tiny_run, policy_text, tmp_path, monkeypatch, steps
):
    noise = f'kind = "discrete_gaussian", grid_steps = {steps}'
    policy = policy_text.replace('kind = "skellam"', noise)
    artifacts = RunArtifacts.open(tiny_run(tmp_path, policy, rounds=1))
    context = everybody_reports(rebuild_context(artifacts))
    assert sensitivity(context).holds
    genuine = privacy_path.protect

    def twice(updates, grid, share, bits):
        vectors, clipped = genuine(updates, grid, share, bits)
        return 2 * vectors, clipped

    monkeypatch.setattr(privacy_path, "protect", twice)
    assert not sensitivity(context).holds


def test_noise_stream_reused_every_second_round(tiny_run, tmp_path, monkeypatch):
    def bits(self, purpose, round, user=0):
        place = round // 2 if purpose == "noise" else round
        return reproducible_bits(key(7, purpose, place, user))

    monkeypatch.setattr(run_privacy.RunPrivacy, "bits", bits)
    assert failures(tiny_run(tmp_path), "ledger", "mechanism") == {
        "fresh noise every round",
        "noise of no printed seed",
        "the same round never draws the same noise",
    }


def test_poisson_declared_but_cohorts_fixed(tiny_run, tmp_path, monkeypatch):
    def cohort(rule, seed, round):
        return np.sort(np.random.default_rng([seed, round]).permutation(rule.population)[:20])

    monkeypatch.setattr(availability.rules, "cohort", cohort)
    assert failures(tiny_run(tmp_path), "ledger", "mechanism") == {"sampling as declared"}


def test_dropout_shortfall_unrecorded(tiny_run, tmp_path, monkeypatch):
    class Forgetful(IdealAggregator):
        def submit(self, vectors):
            kept = vectors[: int(np.ceil(0.7 * len(vectors)))]
            super().submit(kept)
            self.reports += len(vectors) - len(kept)
            return len(vectors)

    genuine = privacy_path.cohort_noise
    monkeypatch.setattr(rounds, "IdealAggregator", Forgetful)
    monkeypatch.setattr(
        privacy_path,
        "cohort_noise",
        lambda share, n, dim, bits: genuine(share, int(0.7 * n), dim, bits),
    )
    found = failures(tiny_run(tmp_path), "ledger", "mechanism")
    assert {"noise on the sum", "each report counts once"} <= found


def test_a_ledger_entry_edited(tiny_run, tmp_path):
    run = tiny_run(tmp_path)
    path = run / "ledger.jsonl"
    lines = path.read_text().split("\n")
    line = json.loads(lines[4])
    line["entry"]["sum_multiplier"] *= 2
    lines[4] = json.dumps(line, sort_keys=True, separators=(",", ":"))
    path.write_text("\n".join(lines))
    assert "hash chain" in failures(run, "ledger")


@pytest.mark.parametrize("factor", [0.1, 0.9, 1.1])
def test_noise_off_by_a_tenth_is_rejected(tiny_run, tmp_path, monkeypatch, factor):
    genuine = privacy_path.cohort_noise
    run = tiny_run(tmp_path)

    def scaled(share, reports, dim, bits):
        wrong = type(share)(share.kind, share.variance * factor**2)
        return genuine(wrong, reports, dim, bits)

    monkeypatch.setattr(privacy_path, "cohort_noise", scaled)
    assert "noise on the sum" in failures(run, "mechanism")


@pytest.mark.parametrize("share_of_shares", [1 / 20, 0.1])
def test_shares_of_noise_that_are_missing(honest_run, monkeypatch, share_of_shares):
    # Noise once per cohort instead of by every device; or nine devices of ten without any.
    genuine = privacy_path.cohort_noise

    def too_few(share, reports, dim, bits):
        return genuine(share, max(1, int(reports * share_of_shares)), dim, bits)

    monkeypatch.setattr(privacy_path, "cohort_noise", too_few)
    assert "noise on the sum" in failures(honest_run, "mechanism")


def test_a_report_counted_twice(honest_run, monkeypatch):
    class Generous(IdealAggregator):
        def submit(self, vectors):
            summed = super().submit(vectors)
            super().submit(vectors[:1])
            self.reports -= 1
            return summed

    monkeypatch.setattr(rounds, "IdealAggregator", Generous)
    assert "each report counts once" in failures(honest_run, "mechanism")


def test_a_mean_that_divides_by_how_many_came(honest_run, monkeypatch):
    genuine = privacy_path.noisy_mean

    def by_reports(privacy, opened, *about):
        released = genuine(privacy, opened, *about)
        return replace(released, mean=released.mean * np.float32(privacy.cohort / opened.reports))

    monkeypatch.setattr(privacy_path, "noisy_mean", by_reports)
    found = failures(honest_run, "mechanism")
    assert "division by a public constant" in found


def test_reports_weighted_by_how_much_was_typed(honest_run, monkeypatch):
    trained, protected, words = simulate.train_cohort, simulate.protect_updates, {}

    def counting(*about, **more):
        for group in trained(*about, **more):
            words.update({trace.user: trace.tokens for trace in group.traces})
            yield group

    def weighted(privacy, updates, broadcast, users, cohort):
        vectors, clipped = protected(privacy, updates, broadcast, users, cohort)
        return vectors * np.array([words[user] for user in users])[:, None], clipped

    monkeypatch.setattr(simulate, "train_cohort", counting)
    monkeypatch.setattr(simulate, "protect_updates", weighted)
    assert "each report counts once" in failures(honest_run, "mechanism")


def test_all_noise_from_a_printed_seed(tiny_run, tmp_path, monkeypatch):
    def bits(self, purpose, round, user=0):
        return reproducible_bits(key(7, purpose, round, user))

    monkeypatch.setattr(run_privacy.RunPrivacy, "bits", bits)
    found = failures(tiny_run(tmp_path), "mechanism")
    assert found == {"noise of no printed seed", "the same round never draws the same noise"}


def test_noise_left_out_of_the_rounds_of_the_run_alone(honest_run, monkeypatch):
    genuine = privacy_path.noisy_mean

    def in_later_rounds(privacy, opened, config, broadcast, *about):
        if broadcast.round < 1_000:
            privacy = privacy.without_policy()
        return genuine(privacy, opened, config, broadcast, *about)

    monkeypatch.setattr(privacy_path, "noisy_mean", in_later_rounds)
    assert "noise on the sum" in failures(honest_run, "mechanism")
