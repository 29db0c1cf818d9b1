"""How hard a row is pushed down when it travels, beside the exact softmax, by the rank of its word.

    python -m benchmarks.row_gradients [simulations/chat_partial.toml] [--draws 250]

One local step on the text of some train users, under many draws of the payload's rows. For words
that the text does not hold, what reaches the bias of a travelling row is all push-down; its mean is
divided by that of the exact softmax over all rows on the same text. ``1 / π too often`` is the same
quotient where the candidate's slope goes into its row without the factor π (``devices/output``).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import Payload, gather
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.recipes import load
from pfl_lm.run.context import RunContext, text_of
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.setup import open_run

BINS = (0, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000)
USERS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="?", default="simulations/chat_partial.toml")
    parser.add_argument("--draws", type=int, default=250)
    chosen = parser.parse_args()
    context = open_run(load(Scenario, Path(chosen.scenario)))
    text = np.concatenate([text_of(context, user, 0)[:4] for user in range(USERS)])
    plan = context.scenario.payload
    exact = push_down(context, replace(plan, rows="all"), 0, text, "softmax")[1]
    sums = np.zeros((3, len(BINS) - 1))  # exact, as trained, 1 / π too often
    inclusion: list[list[float]] = [[] for _ in BINS[1:]]
    for number in range(chosen.draws):
        loss = context.scenario.training.loss
        payload, found = push_down(context, plan, number, text, loss)
        assert payload.rows is not None
        assert payload.inclusion is not None
        silent = ~np.isin(payload.rows, text)
        place = np.digitize(payload.rows, BINS) - 1
        for bin in range(len(BINS) - 1):
            here = silent & (place == bin)
            sums[0, bin] += exact[payload.rows[here]].sum()
            sums[1, bin] += found[here].sum()
            sums[2, bin] += (found[here] / payload.inclusion[here]).sum()
            inclusion[bin] += payload.inclusion[here].tolist()
    print("| ranks | mean π | as trained | 1 / π too often |\n|---|---|---|---|")
    for bin, probabilities in enumerate(inclusion):
        ranks = f"{BINS[bin]:,} to {BINS[bin + 1]:,}"
        own, wrong = sums[1:, bin] / sums[0, bin]
        print(f"| {ranks} | {np.mean(probabilities):.2f} | {own:.3f} | {wrong:.1f} |")


def push_down(
    context: RunContext, plan: PayloadPlan, number: int, text: np.ndarray, loss: str
) -> tuple[Payload, np.ndarray]:
    """Return the payload of a round and what one step takes from each of its rows' biases."""
    words = context.tokenizer
    payload = choose(plan, context.roles, words.unigram, words.specials, 1, number)
    step: LocalTraining = replace(
        context.scenario.training,
        learning_rate=1000.0,  # an update is large beside the rounding of the biases
        batch_size=len(text),
        gradient_clip=None,
        loss=loss,  # type: ignore[arg-type]
    )
    parameters = context.start.parameters
    values = gather(parameters, payload)
    task = Task(context.spec, parameters, payload, values, step, words.unigram, 1, number)
    updates, _ = train(task, [text], [0])
    bias: np.ndarray = payload.views(updates[0])["output_bias"] / -step.learning_rate
    return payload, bias


if __name__ == "__main__":
    main()
