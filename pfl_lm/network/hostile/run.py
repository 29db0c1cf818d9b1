"""Many cases of the hostile server, one after the other, against a device that comes again."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pfl_lm.dp.policy import Policy
from pfl_lm.network.hostile.cases import Case
from pfl_lm.network.hostile.server import Attack, Running, play
from pfl_lm.network.hostile.watch import Outcome, Patience
from pfl_lm.network.identity import ServerKeys, read_key
from pfl_lm.network.task_config import TaskConfig, served
from pfl_lm.network.web import Browsers
from pfl_lm.recipes import load
from pfl_lm.run.folder import write_json
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.setup import open_run
from pfl_lm.secagg.keys import public_key

_SAID_BYTES = 4096  # of a device's log, from its end
_MOST_COHORT = 500  # devices that one process can play


def prepare(
    scenario: Scenario,
    keys: ServerKeys,
    address: str,
    patience: Patience,
    trial: bool = False,
    start: Callable[[str], Running] | None = None,
    browsers: Browsers | None = None,
) -> Attack:
    """Return what is needed to attack devices of these keys.

    Args:
        trial: attack devices that take part where nobody is protected.
        start: starts the device for each case; None: somebody else does.
        browsers: attack devices that call over HTTPS.

    Raises:
        ValueError: the keys are in use, the authority's secret is not in their folder, the run is
            none that devices accept, or that browsers cannot take part in, or its cohort is too
            large to be played here.
    """
    if keys.account().path.exists():
        raise ValueError(
            f"{keys.folder} belongs to a population that has taken part in rounds; make keys of "
            "their own for tests with `pfl-lm enrol`"
        )
    keys.check_server()
    scenario = replace(
        scenario, secure_aggregation="protocol", adversary=scenario.adversary or "active"
    )
    if scenario.cohort > _MOST_COHORT:
        raise ValueError(
            f"cohort = {scenario.cohort:,}: the hostile server plays the other devices itself, at "
            f"most {_MOST_COHORT}; take a policy with a smaller report_goal for tests"
        )
    enrolled = len(keys.enrolled())
    if scenario.policy is not None and not trial:  # the others exist on paper only
        enrolled = max(enrolled, load(Policy, scenario.policy).population)
    context = served(open_run(scenario, enrolled=enrolled), enrolled, trial)
    if browsers is not None:
        browsers.check(context, trial)
    task = TaskConfig.of(context, os.urandom(16).hex(), trial)
    authority = _authority(keys)
    return Attack(scenario, context, task, keys, authority, address, patience, start, browsers)


def _authority(keys: ServerKeys) -> bytes:
    """The secret that certified the device, with which the other devices are made up."""
    path = keys.folder / "authority.key"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: the hostile server certifies the other devices itself; make keys "
            "for the test with `pfl-lm enrol`"
        )
    secret = read_key(path)
    if public_key(secret) != keys.authority():
        raise ValueError(f"{path} is not the secret of {keys.folder / 'authority.pub'}")
    return secret


def play_all(attack: Attack, cases: Iterable[Case]) -> Iterator[Outcome]:
    """Play cases one after the other."""
    for case in cases:
        yield asyncio.run(play(attack, case))


def write_outcomes(outcomes: Iterable[Outcome], path: Path) -> None:
    """Write how each case ended, as JSON."""
    rows = [
        {
            "case": outcome.case.name,
            "server": outcome.case.sentence,
            "verdict": outcome.verdict.value,
            "device": outcome.reason,
            "saw": outcome.saw,
        }
        for outcome in outcomes
    ]
    write_json(path, {"cases": rows})


@dataclass(frozen=True)
class Command:
    """A command that starts the device, for each case anew.

    Args:
        line: its words, as in a shell; ``{case}`` stands for the case's name.
        logs: folder of what the device prints, CASE.log.

    Raises:
        ValueError: no program is named.
    """

    line: str
    logs: Path

    def __post_init__(self) -> None:
        if not shlex.split(self.line):
            raise ValueError("--device: no program is named")

    def __call__(self, case: str) -> Running:
        words = [word.replace("{case}", case) for word in shlex.split(self.line)]
        return _Process(words, self.logs / f"{case}.log")


class _Process:
    """A device that was started as a process."""

    def __init__(self, words: list[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            try:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "COLUMNS": "400"},
                )
            except OSError as error:
                raise ValueError(f"--device: {words[0]} cannot be started: {error}") from None

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def said(self) -> str:
        """The last line that the device printed."""
        lines = self._log.read_bytes()[-_SAID_BYTES:].decode(errors="replace").splitlines()
        return " ".join(next((line for line in reversed(lines) if line.strip()), "").split())

    def stop(self) -> None:
        """End the process, if it does not end by itself."""
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
