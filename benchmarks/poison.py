"""What one poisoner among n devices does to a suggestion, within the clip norm and without a clip.

    python -m benchmarks.poison [--rounds 10] [--cohort 100] [--start START.pt]
    python -m benchmarks.poison --groups 4 8 --cohort 96      # sums by public groups

The demo's scenario. One device of a cohort is the poisoner's. It moves the word's row towards the
hidden vector after the context, and its bias up, as far as the clip norm lets it: the steepest
direction for that one score, better than any training on text. Without a clip it sends what makes
the word the first suggestion at once, n times what the mean shall move by; the server's bound on a
sum (``check_sum``) refuses such a sum where there is a clip. The table shows the rank of the word
after the context, and the first round after which it is among the three suggestions. "every round"
is one device in n of the population, another in each round; under a policy that lets nobody take
part twice one person has the first round alone.

With --groups the same poisoner, in every round, meets one sum a round and sums by public groups,
without noise and with the policy's. The perplexity on validation users is the price of the groups.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfl_lm.demo import RECIPE, prepare
from pfl_lm.devices.training import train
from pfl_lm.dp.ledger import Ledger
from pfl_lm.evaluation.evaluate import ModelScorer
from pfl_lm.native.tuning import tune
from pfl_lm.recipes import load
from pfl_lm.run.availability import Cohort, invite
from pfl_lm.run.context import RunContext, choose_payload
from pfl_lm.run.evaluation import validate
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.recorder import RoundRecorder
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulate import Ends, run_round
from pfl_lm.server.state import ServerState, open_round

SHOWN = 3  # suggestions
CONTEXT_RANK, WORD_RANK = 40, 300  # in the vocabulary's order of frequency
NO_CLIP = 1e3  # a clip norm that no honest update reaches


def main() -> None:
    """Print the table of RESULTS.md."""
    arguments = _arguments()
    tune(1)
    if arguments.groups:
        _groups(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        scenario = _scenario(arguments, Path(folder))
        clip = scenario.clip_norm
        free = replace(scenario, policy=None, clip_norm=NO_CLIP)
        rows = [
            ("no poisoner", replace(scenario, policy=None), Poisoner(0.0, ())),
            ("within the clip, every round", replace(scenario, policy=None), Poisoner(clip)),
            ("within the clip, every round, the policy's noise", scenario, Poisoner(clip)),
            ("no clip, first round alone", free, Poisoner(None, (0,))),
            ("within the clip, first round alone", replace(scenario, policy=None),
             Poisoner(clip, (0,))),
        ]  # fmt: skip
        print(
            f"one poisoner of {scenario.cohort} a round, {arguments.rounds} rounds, clip {clip:g}"
        )
        print("| poisoner | rank before | after round 1 | at the end | first suggested in round |")
        print("|---|---|---|---|---|")
        for name, changed, poisoner in rows:
            print(_row(name, changed, poisoner, arguments.rounds, Path(folder)), flush=True)


def _groups(arguments: argparse.Namespace) -> None:
    """Print the table of sums by public groups."""
    with tempfile.TemporaryDirectory() as folder:
        scenario = _scenario(arguments, Path(folder))
        print(f"{scenario.cohort} reports a round, {arguments.rounds} rounds, every round poisoned")
        print("| groups | noise | rank before | after round 1 | at the end | first suggested in"
              " round | perplexity |")  # fmt: skip
        print("|---|---|---|---|---|---|---|")
        alone = replace(scenario, policy=_policy(Path(folder), 1, True))
        nobody = Poisoner(0.0, ())
        print(_row("1, no poisoner | none", alone, nobody, arguments.rounds, Path(folder), True))
        for noise in ("none", "the policy's"):
            for groups in (1, *arguments.groups):
                policy = _policy(Path(folder), groups, noise == "none")
                name, changed = f"{groups} | {noise}", replace(scenario, policy=policy)
                poisoner = Poisoner(scenario.clip_norm)
                print(_row(name, changed, poisoner, arguments.rounds, Path(folder), True),
                      flush=True)  # fmt: skip


def _policy(folder: Path, groups: int, free: bool) -> Path:
    """Write the demo's policy with public groups, and without noise where ``free``."""
    text = (RECIPE.parent / "policy.toml").read_text(encoding="utf-8") + f"groups = {groups}\n"
    if free:
        text = re.sub("(?m)^epsilon .*$", "epsilon = inf", text)
        text = re.sub("(?m)^noise .*$", 'noise = { at = "none", kind = "none" }', text)
    path = folder / f"{groups}-{free}.toml"
    path.write_text(text, encoding="utf-8")
    return path


@dataclass
class Poisoner:
    """One device of a cohort that teaches a word after another.

    Attributes:
        length: of its update; None: n times what makes the word the first suggestion.
        rounds: in which it takes part; None: in all.
        pair: context and word.
    """

    length: float | None
    rounds: Sequence[int] | None = None
    pair: tuple[int, int] = (0, 0)

    def ends(self, context: RunContext, state: ServerState) -> Ends:
        """Return a round's ends in which the first invited device is the poisoner's."""
        device = [-1]

        def invited(context: RunContext, broadcast: Any, clock: float) -> Cohort:
            cohort = invite(context, broadcast, clock)
            if self.rounds is None or broadcast.round in self.rounds:
                device[0] = int(cohort.invited[0])
            return cohort

        def learn(task: Any, texts: Sequence[np.ndarray], users: Sequence[int]) -> Any:
            updates, traces = train(task, texts, users)
            for place in np.flatnonzero(np.array(users) == device[0]):
                updates[place] = self.update(context, state)
            return updates, traces

        return Ends(invited, train=learn)

    def update(self, context: RunContext, state: ServerState) -> np.ndarray:
        """Return the payload's part of the gradient of the word's score, as long as it may be."""
        hidden, scores = _scored(context, state, self.pair[0])
        zeros = {name: torch.zeros_like(value) for name, value in state.parameters.items()}
        zeros[context.spec.output_table][self.pair[1]] = hidden
        zeros["output_bias"][self.pair[1]] = 1.0
        payload = choose_payload(context, state.round)
        gradient = open_round(ServerState(state.round, zeros), payload).values
        if (norm := float(np.linalg.norm(gradient))) == 0:
            return gradient  # the word's row does not travel in this round
        gap = float(scores.max() - scores[self.pair[1]]) + 1
        length = context.scenario.cohort * gap / norm if self.length is None else self.length
        return gradient * (length / norm)


def _row(
    name: str,
    scenario: Scenario,
    poisoner: Poisoner,
    rounds: int,
    folder: Path,
    measures: bool = False,
) -> str:
    """Run the rounds; return a line of the table.

    Args:
        measures: with the perplexity on validation users at the end.
    """
    context = open_run(scenario)
    poisoner.pair = _word(context, CONTEXT_RANK), _word(context, WORD_RANK)
    state = ServerState(0, context.start.parameters)
    ranks = [_rank(context, state, poisoner.pair)]
    path = folder / f"{name.replace('|', '-')}.jsonl"
    with Ledger.create(path, {"run": name, "policy_digest": "-"}) as ledger:
        for _ in range(rounds):
            state, _ = run_round(
                context, state, RoundRecorder(ledger), ends=poisoner.ends(context, state)
            )
            ranks.append(_rank(context, state, poisoner.pair))
    shown = [number for number, rank in enumerate(ranks) if number and rank <= SHOWN]
    first = str(shown[0]) if shown else f"not in {rounds}"
    row = f"| {name} | {ranks[0]:,} | {ranks[1]:,} | {ranks[-1]:,} | {first} |"
    return f"{row} {validate(context, state)['perplexity']:.1f} |" if measures else row


def _word(context: RunContext, rank: int) -> int:
    """Return the word of that rank by public frequency."""
    return int(np.argsort(-context.tokenizer.unigram, kind="stable")[rank])


def _rank(context: RunContext, state: ServerState, pair: tuple[int, int]) -> int:
    """Return the place of the word among all that may follow the context, from 1."""
    _, scores = _scored(context, state, pair[0])
    return int((scores > scores[pair[1]]).sum()) + 1


def _scored(context: RunContext, state: ServerState, word: int) -> tuple[Any, Any]:
    """Return the hidden vector (P,) after a message's first word, and all scores (V,)."""
    scorer = ModelScorer(context.spec, dict(state.parameters))
    hidden = scorer.states(np.array([[context.tokenizer.bos_id, word]]))[0, -1:].detach()
    scores = scorer.scores(hidden, slice(None))[0].detach()
    scores[list(context.tokenizer.specials)] = -np.inf
    return hidden[0], scores


def _scenario(arguments: argparse.Namespace, folder: Path) -> Scenario:
    if arguments.start is None:
        scenario = prepare(folder / "demo", ProgressListener())
    else:
        scenario = replace(load(Scenario, RECIPE), start=arguments.start.resolve())
    return replace(scenario, cohort=arguments.cohort)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--groups", type=int, nargs="+", help="numbers of public groups")
    parser.add_argument("--start", type=Path, help="the demo's first model [trained first]")
    return parser.parse_args()


if __name__ == "__main__":
    main()
