"""Do the intervals of federated evaluation hold, and how many phones tell 1%? For RESULTS.

    python -m benchmarks.launch STORE TOKENIZER CURRENT CANDIDATE [--runs 200] [--plot power.html]

Both models are scored once on real users of the test split. A run draws its phones from these with
replacement, asks them under the shipped policy `launch` restated for as many, with fresh noise, and
forms the intervals; they should hold the mean over all users. Equal models: every phone's gain has
a random sign. 1% better: the gains are moved so that their mean is 0.01 nats. By group: the classes
of phones of a fleet, drawn for each user.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.words import noised
from pfl_lm.dp.policy import Policy
from pfl_lm.models.file import load_model
from pfl_lm.pages import charts
from pfl_lm.pages.charts import Level, Series, legend, line_chart
from pfl_lm.phones import fleet as fleets
from pfl_lm.queries.ask import QuerySession
from pfl_lm.queries.comparison import PRIMARY, RANGES, answer, comparison_query, measure
from pfl_lm.queries.launch import differences
from pfl_lm.queries.launch_rule import LaunchQuestion, decide
from pfl_lm.recipes import load
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer

PHONES = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
GAIN = 0.01  # nats: 1% of perplexity


def laid_out(gains: np.ndarray) -> np.ndarray:
    """Return what each phone puts into the cells, float64[n, cells], by its own code."""
    rows = (answer(dict(zip(RANGES, row, strict=True))) for row in gains.tolist())
    return np.array([row.values for row in rows], dtype=np.float64)


def run(total: np.ndarray, phones: int, policy: Policy, seed: int, question: LaunchQuestion):
    """Add the noise of so many phones to the sum of their answers; return decision, estimates."""
    restated = replace(policy, report_goal=phones, population=phones)
    session = QuerySession(restated, phones, phones, seed)
    query = comparison_query(policy.noise.min_dim)
    padded = np.zeros(query.dim)
    padded[: len(total)] = total
    sums = noised(session, query, 0, padded, phones)
    measured = measure(sums, session.deviation(query))
    return decide(question, measured, session.deviation(query)), measured.whole


def drawn_sum(answers: np.ndarray, phones: int, random: np.random.Generator) -> np.ndarray:
    """Sum the answers of phones drawn with replacement."""
    counts = np.bincount(random.integers(len(answers), size=phones), minlength=len(answers))
    return counts @ answers


def coverage(gains: np.ndarray, policy: Policy, runs: int, phones: int) -> None:
    """Print how often the 95% intervals hold the mean over all users."""
    limits = np.array(list(RANGES.values()))
    truth, clipped = gains.mean(axis=0), np.clip(gains, -limits, limits).mean(axis=0)
    held, held_clipped, wide = np.zeros(len(RANGES)), np.zeros(len(RANGES)), np.zeros(len(RANGES))
    answers = laid_out(gains)
    for seed in range(runs):
        total = drawn_sum(answers, phones, np.random.default_rng(seed))
        _, found = run(total, phones, policy, seed, LaunchQuestion())
        assert found is not None
        ends = np.array([estimate.interval(0.95) for estimate in found.values()])
        held += (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        held_clipped += (ends[:, 0] <= clipped) & (clipped <= ends[:, 1])
        wide += ends[:, 1] - ends[:, 0]
    print("| measure | mean over users | … clipped | width | holds the mean | … the clipped |")
    print("|---|---|---|---|---|---|")
    for place, name in enumerate(RANGES):
        print(
            f"| {name} | {truth[place]:+.4f} | {clipped[place]:+.4f} | {wide[place] / runs:.4f} | "
            f"{held[place] / runs:.1%} | {held_clipped[place] / runs:.1%} |",
            flush=True,
        )


def coverage_by_group(gains: np.ndarray, policy: Policy, runs: int, phones: int) -> None:
    """Print how often the intervals of all groups of a measure hold at once."""
    fleet = load(fleets.Fleet, Path("fleets/mixed"))
    groups = fleet.names
    group_of = fleets.phones(fleet, 1, "test", np.arange(len(gains))).profile
    limits = np.array(list(RANGES.values()))
    clipped = np.clip(gains, -limits, limits)
    truth = np.array([clipped[group_of == place].mean(axis=0) for place in range(len(groups))])
    query = comparison_query(policy.noise.min_dim, groups)
    filled = [
        answer(dict(zip(RANGES, row, strict=True)), place)
        for row, place in zip(gains.tolist(), group_of.tolist(), strict=True)
    ]
    answers = query.vectors(filled).astype(np.float64)
    restated = replace(policy, report_goal=phones, population=phones)
    held, wide = np.zeros((2, len(RANGES))), np.zeros((len(groups) + 1, len(RANGES)))
    for seed in range(runs):
        total = drawn_sum(answers, phones, np.random.default_rng(seed))
        session = QuerySession(restated, phones, phones, seed)
        sums = noised(session, query, 0, total, phones)
        found = measure(sums, session.deviation(query), groups)
        rows = [found.whole, *found.groups.values()]
        levels = [0.95, *[found.confidence] * len(groups)]
        ends = np.array([
            [estimate.interval(level) for estimate in row.values()]
            for row, level in zip(rows, levels, strict=True) if row is not None
        ])  # fmt: skip
        means = np.concatenate([clipped.mean(axis=0)[None], truth])
        right = (ends[..., 0] <= means) & (means <= ends[..., 1])
        held += np.stack([right[0], right[1:].all(axis=0)])
        wide += ends[..., 1] - ends[..., 0]
    print("| measure | width | " + " | ".join(f"… {name}" for name in groups)
          + " | holds | all groups hold |")  # fmt: skip
    print("|---" * (len(groups) + 4) + "|")
    for place, name in enumerate(RANGES):
        widths = " | ".join(f"{width / runs:.4f}" for width in wide[:, place])
        shares = " | ".join(f"{share / runs:.1%}" for share in held[:, place])
        print(f"| {name} | {widths} | {shares} |", flush=True)


def rates(gains: np.ndarray, policy: Policy, runs: int) -> list[Series]:
    """Print false launches on equal models, and power against 1%, by number of phones."""
    question = LaunchQuestion(gain=GAIN)
    both = np.concatenate([gains, -gains])  # a random sign each: no model is better
    moved = both.copy()
    moved[:, list(RANGES).index(PRIMARY)] += GAIN
    equal_answers, better_answers = laid_out(both), laid_out(moved)
    print(
        "| phones | equal models launched | 1% better launched | … rejected | not enough phones |"
    )
    print("|---|---|---|---|---|")
    false, true = [], []
    for phones in PHONES:
        equal: list[str] = []
        better: list[str] = []
        for seed in range(runs):
            random = np.random.default_rng(1_000 + seed)
            for answers, verdicts in ((equal_answers, equal), (better_answers, better)):
                total = drawn_sum(answers, phones, random)
                noise = 2 * seed + (verdicts is better)
                verdicts.append(run(total, phones, policy, noise, question)[0].verdict)
        shares = [better.count(v) / runs for v in ("launch", "do not launch", "not enough phones")]
        false.append(100 * equal.count("launch") / runs)
        true.append(100 * shares[0])
        print(
            f"| {phones:,} | {false[-1]:.1f}% | "
            + " | ".join(f"{share:.1%}" for share in shares)
            + " |",
            flush=True,
        )
    x = np.log10(PHONES).tolist()
    return [Series("1% better: launched", x, true, "s0"), Series("equal: launched", x, false, "s1")]


def plot(path: Path, lines: list[Series]) -> None:
    """Write a page with the rates by number of phones."""
    theme = (Path(charts.__file__).parent / "theme.css").read_text(encoding="utf-8")
    level = [Level("α", 5.0)]
    chart = line_chart(
        lines, x_label="phones", y_label="% of runs", format_x=lambda x: f"{10**x:,.0f}",
        levels=level, zero=True,
    )  # fmt: skip
    path.write_text(
        f"<!doctype html><meta charset='utf-8'><title>Power</title><style>{theme}"
        "ul { display: flex; gap: 1em; list-style: none; padding: 0 }</style>"
        f"<figure>{legend(lines)}{chart}</figure>",
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    for name in ("store", "tokenizer", "current", "candidate"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--users", type=int, default=3_000)
    parser.add_argument("--phones", type=int, default=10_000)
    parser.add_argument("--plot", type=Path, help="page to write the rates into")
    chosen = parser.parse_args()
    store, tokenizer = PopulationStore.open(chosen.store), Tokenizer.open(chosen.tokenizer)
    users = range(min(chosen.users, store.users("test")))
    models = [load_model(path) for path in (chosen.current, chosen.candidate)]
    by_user = differences(models, store, tokenizer, LaunchQuestion(), users)
    gains = np.array([list(row.values()) for row in by_user.values() if row is not None])
    policy = load(Policy, Path("launch"))
    spreads = ", ".join(f"{spread:.3f}" for spread in gains.std(axis=0))
    print(f"{len(gains):,} users; their gains spread by {spreads}", flush=True)
    coverage(gains, policy, chosen.runs, chosen.phones)
    coverage_by_group(gains, policy, chosen.runs, chosen.phones)
    lines = rates(gains, policy, chosen.runs)
    if chosen.plot is not None:
        plot(chosen.plot, lines)


if __name__ == "__main__":
    main()
