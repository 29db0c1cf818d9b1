"""Every training method, trained on real text under the same policy.

    python -m benchmarks.training_methods simulations/chat_partial.toml [--rounds 25]
        [--cohort 50] [--only …]

One line a method: measured peak of training memory, operations, bytes up, and the model's figures
on validation users after the rounds; then the best method within each budget of memory. Results
are kept in ``--keep``, a file a method, so that a line is trained once and a crash loses nothing:
the last call prints the whole table. A line whose scenario has changed since is trained again.

Every line is trained at the same ε. The noise of it follows from the policy, with two changes
where a line needs them, neither of which moves ε: the grid (``grid_steps``) that updates are
rounded to, and the smallest payload that the policy covers (``min_dim``). The coarser the one and
the smaller the other, the more rounding lengthens an update, and the more noise pays for it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pfl_lm.files import write_atomically
from pfl_lm.native.tuning import tune
from pfl_lm.phones.fleet import Fleet
from pfl_lm.recipes import load
from pfl_lm.run.device_cost import device_cost
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.simulate import simulate
from pfl_lm.run.training_methods import METHODS_BY_NAME, TRAINING_METHODS

FLEETS = Path(__file__).resolve().parents[1] / "simulations" / "fleets"
BUDGETS_MB = (8, 64, 256, 1000)
LEVELS = 8  # a coordinate of root mean square 1 lies within ±4: so wide is the range of the bits


@dataclass(frozen=True)
class Line:
    """One line of the table: a method, and what is changed about it.

    Attributes:
        noise: fields of the policy's ``noise`` that differ.
        rotate: whether updates are rotated before they are rounded.
    """

    name: str
    method: str
    rate: float | None = None
    noise: Mapping[str, float] = field(default_factory=dict)
    rotate: bool = False
    training: dict[str, Any] = field(default_factory=dict)

    def scenario(self, base: Scenario, folder: Path) -> Scenario:
        """Apply the line to a scenario; a changed policy is written to ``folder``."""
        changed = METHODS_BY_NAME[self.method].apply(base)
        training = replace(changed.training, **self.training)
        if self.rate is not None:
            training = replace(training, learning_rate=self.rate)
        policy = changed.policy
        if self.noise and policy is not None:
            policy = _derived(policy, self.noise, folder)
        return replace(changed, training=training, policy=policy, rotate=self.rotate)


def _coarse(bits: int, method: str, name: str) -> Line:
    """Round the update to ``bits`` bits: 2^bits steps over ±4 root mean squares at the clip."""
    return Line(
        f"{name}, {bits}-bit update", method, noise={"grid_steps": 2**bits / LEVELS}, rotate=True
    )


_SMALL = {"min_dim": 256}  # biases are fewer coordinates than the shipped policy covers
_OTHERS = (
    *(Line(f"forward only, rate {r:g}", "forward only", rate=r) for r in (0.3, 0.03, 0.003)),
    Line("zeroth order, rate 20", "zeroth order", rate=20.0),
    Line("zeroth order, LoRA, rate 50", "zeroth order, LoRA", rate=50.0),
    Line("zeroth order, biases, rate 50", "zeroth order, biases", rate=50.0),
    *(_coarse(bits, "rows + LoRA", "rows + LoRA") for bits in (16, 8, 4, 2, 1)),
    _coarse(4, "least of all", "4-bit model, recomputed"),
    Line("4-bit model, side branch", "side branch", training={"weight_bits": 4}),
    Line("4-bit model, rows + side branch", "rows + side branch", training={"weight_bits": 4}),
    _coarse(4, "partial rows", "partial rows"),
    _coarse(4, "8-bit model", "8-bit model"),
)
_REPLACED = {"biases": Line("biases", "biases", noise=_SMALL)}
_TRIED = {"forward only", "zeroth order", "zeroth order, LoRA", "zeroth order, biases"}
LINES = (
    *(
        _REPLACED.get(method.name, Line(method.name, method.name))
        for method in TRAINING_METHODS
        if method.name not in _TRIED
    ),
    *_OTHERS,
)


def main() -> None:
    chosen = _arguments()
    tune()
    base = _base(chosen)
    folder = chosen.keep / f"{chosen.scenario.stem}_{chosen.rounds}_{chosen.cohort}_{chosen.users}"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for line in LINES if not chosen.only or line.name in chosen.only]
    found = []
    for line in lines:
        result = _of(line, base, folder, chosen.kept)
        if result is not None:
            found.append((line, result))
            print(f"{line.name}: {_figures(result)}", file=sys.stderr, flush=True)
    print_table(found)
    print_best(found)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--cohort", type=int, default=50)
    parser.add_argument("--users", type=int, default=120)
    names = [line.name for line in LINES]
    parser.add_argument("--only", nargs="+", choices=names, metavar="LINE", help="; ".join(names))
    parser.add_argument(
        "--keep", type=Path, default=Path("runs/training_methods"), help="where results lie"
    )
    parser.add_argument("--kept", action="store_true", help="print what is there, train nothing")
    return parser.parse_args()


def _base(chosen: argparse.Namespace) -> Scenario:
    base = load(Scenario, chosen.scenario)
    return replace(
        base,
        rounds=chosen.rounds,
        cohort=chosen.cohort,
        population=replace(base.population, public_text=None),  # no baselines are asked for
        evaluation=replace(base.evaluation, every=chosen.rounds, users=chosen.users, final_users=1),
    )


def _of(line: Line, base: Scenario, folder: Path, kept_only: bool) -> dict[str, Any] | None:
    """Return a line's figures: those that lie there, or new ones, which are kept."""
    path = folder / f"{line.name.replace(' ', '_').replace(',', '')}.json"
    scenario = line.scenario(base, folder)
    name, fleet = _name_of(scenario, line), load(Fleet, FLEETS / "mixed.toml")
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if result.get("scenario") != name:
        if kept_only:
            return None
        asked = device_cost(scenario, fleet, measured=True)
        result = {"scenario": name, "line": asdict(line), "measured": asked, **learnt(scenario)}
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(result, indent=1))
    memory = {part: result["measured"][part] for part in ("peak_bytes", "work_bytes")}
    return result | {"cost": device_cost(scenario, fleet) | memory}


def _name_of(scenario: Scenario, line: Line) -> str:
    """Name what a line trains, wherever its recipes lie."""
    about = (
        scenario.model, scenario.payload, scenario.training, scenario.server, scenario.rounds,
        scenario.cohort, scenario.clip_norm, scenario.seed, scenario.rotate,
        scenario.evaluation, sorted(line.noise.items()),
    )  # fmt: skip
    return hashlib.sha256(repr(about).encode()).hexdigest()


def learnt(scenario: Scenario) -> dict[str, Any]:
    """Train; return first and last evaluation and seconds a round, or why it was refused."""
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = simulate(scenario, Path(folder) / "run", ProgressListener())
            entries = [json.loads(text) for text in run.metrics_path.read_text().splitlines()]
    except ValueError as refusal:
        return {"refused": str(refusal)}
    seconds = (time.monotonic() - started) / scenario.rounds
    evaluations = [entry for entry in entries if entry["kind"] == "evaluation"]
    rounds = [entry for entry in entries if entry["kind"] == "round"]
    return {
        "before": evaluations[0],
        "after": evaluations[-1],
        "epsilon": rounds[-1]["epsilon"],
        "seconds": seconds,
    }


def _figures(result: dict[str, Any]) -> str:
    if "refused" in result:
        return f"refused: {result['refused']}"
    before, after = result["before"], result["after"]
    return (
        f"{before['perplexity']:.1f} → {after['perplexity']:.1f}, top-3 {before['top3']:.1%} → "
        f"{after['top3']:.1%}, ε {result['epsilon']:.3f}, {result['seconds']:.1f} s a round"
    )


def print_table(found: list[tuple[Line, dict[str, Any]]]) -> None:
    print("| method | peak MB | work MB | GFLOP | up KB | rounds | perplexity | top-3 |")
    print("|---|---|---|---|---|---|---|---|")
    for line, result in found:
        asked = result["cost"]
        if "refused" in result:
            quality = f"– | refused: {result['refused']} | – |"
        else:
            after = result["after"]
            quality = f"{after['round']} | {after['perplexity']:,.1f} | {after['top3']:.1%} |"
        print(
            f"| {line.name} | {asked['peak_bytes'] / 1e6:.1f} | {asked['work_bytes'] / 1e6:.2f} | "
            f"{asked['flops'] / 1e9:.2f} | {asked['upload_bytes'] / 1e3:,.0f} | {quality}"
        )


def print_best(found: list[tuple[Line, dict[str, Any]]]) -> None:
    """Name the line of least perplexity within each budget of memory."""
    for budget in BUDGETS_MB:
        within = [
            (result["after"]["perplexity"], line.name, result["cost"]["peak_bytes"] / 1e6)
            for line, result in found
            if "after" in result and result["cost"]["peak_bytes"] <= budget * 1e6
        ]
        if within:
            perplexity, name, peak = min(within)
            print(f"{budget} MB: {name} ({peak:.1f} MB), perplexity {perplexity:.1f}")


def _derived(policy: Path, noise: Mapping[str, float], folder: Path) -> Path:
    """Write the policy with other ``noise`` fields, and without the review it no longer has."""
    stated = tomllib.loads(policy.read_text())
    stated.pop("reviewed", None)
    stated["noise"] |= dict(noise)
    label = "_".join(f"{name}_{value:g}" for name, value in noise.items())
    path = folder / f"{policy.stem}_{label}.toml"
    text = "".join(f"{name} = {_toml(value)}\n" for name, value in stated.items())
    with write_atomically(path) as temporary:
        temporary.write_text(text)
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(part)}" for name, part in value.items()) + " }"
    return json.dumps(value)


if __name__ == "__main__":
    main()
