"""A hundred device processes train the demo's model over TLS; the same run simulated, beside it.

    python -m benchmarks.network [--devices 100] [--rounds 4] [--deaths 1] [--folder FOLDER]

Every device is a process of its own with its own key, session and text (forked from one that has
torch loaded, so that a hundred fit into memory). In every round so many processes are killed with
SIGKILL right before each of their messages, others each time, and started again; the server is
killed twice, once after a sum was opened and once after its debit, and goes on with the model
that these sums make. The simulation runs the same scenario, people and seed in one process; the
noise of both comes from the operating system.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pfl_lm.demo import prepare
from pfl_lm.dp.ledger import verify
from pfl_lm.native.tuning import tune
from pfl_lm.network.device import Device
from pfl_lm.network.identity import DeviceKey, ServerKeys, enrol
from pfl_lm.network.rpc_client import RetryPolicy, RpcClient
from pfl_lm.network.server import Serving, serve
from pfl_lm.network.store import Store
from pfl_lm.network.task_config import DeviceSetup
from pfl_lm.network.transport import Limits, channel_to
from pfl_lm.run.context import RunContext
from pfl_lm.run.folder import RunFolder, read_json
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.scenario import EvaluationConfig, PopulationConfig, Scenario
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulate import simulate

LIMITS = Limits(training_seconds=900.0, phase_seconds=300.0, grace_seconds=5.0)
MESSAGES = (1, 3, 5, 9)  # before which devices die: keys, shares, report, answer


def main() -> None:
    """Run both and print the figures that RESULTS.md shows."""
    arguments = _arguments()
    tune(1)
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="network-"))
    folder.mkdir(parents=True, exist_ok=True)
    scenario = _scenario(folder, arguments)
    if not (folder / "keys").exists():
        enrol(folder / "keys", arguments.devices)
    trial = Trial(scenario, folder, arguments.devices, arguments.deaths)
    started = time.monotonic()
    trial.run()
    _print_network(trial, time.monotonic() - started)
    started = time.monotonic()
    simulate(scenario, folder / "simulated", _Rounds(), overwrite=True)
    print(f"\nsimulated in one process: {time.monotonic() - started:.0f} s", flush=True)
    for name in ("served", "simulated"):
        _print_quality(name, RunFolder(folder / name))


class Trial:
    """One server, a process for every device, and what befell them.

    Args:
        deaths: devices killed before each of the four messages of a round.
    """

    def __init__(self, scenario: Scenario, folder: Path, devices: int, deaths: int) -> None:
        self.scenario, self.folder, self.devices, self.deaths = scenario, folder, devices, deaths
        self.keys = ServerKeys(folder / "keys")
        self.context: RunContext = open_run(scenario)
        self.setups = [self._setup(number) for number in range(devices)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.kills = {"devices": 0, "server": 0}
        self.memory = 0
        self.server_kills = [
            (scenario.rounds // 3, "opened"),
            (2 * scenario.rounds // 3, "debited"),
        ]

    def run(self) -> None:
        """Start everybody, start the killed again, and wait for the end."""
        gc.freeze()  # what is shared with the children is not touched by their collections
        server: int | None = self._server(resume=False)
        devices = {self._device(number, 0): number for number in range(self.devices)}
        lives = dict.fromkeys(range(self.devices), 0)
        while server is not None or devices:
            pid, status = os.wait()
            killed = os.WIFSIGNALED(status)
            if pid == server:
                server = None
                if killed:
                    self.kills["server"] += 1
                    self.server_kills.pop(0)
                    server = self._server(resume=True)
                elif status:
                    for other in devices:
                        os.kill(other, signal.SIGKILL)
                    raise SystemExit("the server failed; see its log")
            elif (number := devices.pop(pid, None)) is not None:
                self.memory = max(self.memory, _memory([server, *devices]))
                if killed and server is not None:
                    self.kills["devices"] += 1
                    lives[number] += 1
                    devices[self._device(number, lives[number])] = number

    def _server(self, resume: bool) -> int:
        def work() -> None:
            _log_to(self.folder / "server.log")
            serving = Serving(
                self.keys, self.address, LIMITS, self.devices - 2, True, reached=self._reached
            )
            serve(self.scenario, self.folder / "served", serving, _Rounds(), resume, not resume)

        return _fork(work)

    def _device(self, number: int, life: int) -> int:
        key = DeviceKey.read(self.keys.folder / "devices" / f"{number:05d}.json")

        deaths = self._deaths(number)[life:]

        def sending(round: int, kind: int) -> None:
            if deaths and deaths[0] == (round, kind):
                os.kill(os.getpid(), signal.SIGKILL)

        def work() -> None:
            _log_to(self.folder / "devices.log", logging.WARNING)
            retry = RetryPolicy(most_seconds=2.0, give_up_seconds=600.0, call_seconds=60.0)
            with channel_to(self.address, self.keys.certificate) as channel:
                Device(
                    RpcClient(channel, key, self.keys.server_certificate().digest, retry),
                    key,
                    self.setups[number],
                    sending,
                ).run()

        return _fork(work)

    def _deaths(self, number: int) -> list[tuple[int, int]]:
        """Return the rounds and messages before which a device dies: others in every round."""
        each = 4 * self.deaths
        found = []
        for round in range(self.scenario.rounds):
            place = (number - round * each) % self.devices
            if place < each:
                found.append((round, MESSAGES[place // self.deaths]))
        return found

    def _reached(self, point: str, round: int) -> None:
        if self.server_kills and self.server_kills[0] == (round, point):
            os.kill(os.getpid(), signal.SIGKILL)

    def _setup(self, number: int) -> DeviceSetup:
        tokens = self.context.population.tokens("train", number)
        return DeviceSetup(self.context.tokenizer, self.context.privacy.policy, tokens, trial=True)


def _fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a child; nothing of gRPC has been used before, so a fork is sound."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        logging.getLogger("pfl_lm.network").exception("process %d fails", os.getpid())
    finally:
        os._exit(status)


def _scenario(folder: Path, arguments: argparse.Namespace) -> Scenario:
    """The demo's scenario with as many people as there are processes, all invited every round."""
    if (folder / "demo" / "start.pt").exists():
        from pfl_lm.demo import RECIPE
        from pfl_lm.recipes import load

        scenario = replace(load(Scenario, RECIPE), start=(folder / "demo" / "start.pt").resolve())
    else:
        scenario = prepare(folder / "demo", ProgressListener())
    return replace(
        scenario,
        rounds=arguments.rounds,
        cohort=arguments.devices,
        adversary="semi-honest",
        population=PopulationConfig("synthetic", users=arguments.devices),
        evaluation=EvaluationConfig(0, final_users=300),
        checkpoint_every=5,
    )


def _memory(pids: list[int | None]) -> int:
    """Return the memory of processes in bytes, what they share counted once (PSS)."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def _print_network(trial: Trial, seconds: float) -> None:
    folder = RunFolder(trial.folder / "served")
    rounds = [m for m in folder.metrics() if m["kind"] == "round"]
    store = Store.open(folder.path / "rounds.sqlite")
    states = [row.state for row in store.rounds()]
    debits = [e["round"] for e in verify(folder.ledger_path) if e["kind"] == "round"]
    assert len(debits) == len(set(debits)), "a round was debited twice"
    assert len(states) == len(debits) + states.count("abandoned"), "a debit is missing"
    print(f"{trial.devices} device processes, {trial.scenario.rounds} rounds, {seconds:.0f} s")
    print(f"killed: {trial.kills['devices']} devices, {trial.kills['server']} servers")
    print(f"memory of all processes, shared pages once: {trial.memory / 2**30:.1f} GiB")
    print(f"rounds: { {state: states.count(state) for state in dict.fromkeys(states)} }")
    print(f"debits in the ledger: {len(debits)}, none twice")
    print("| round | reports | seconds | MB up | MB down |\n|---|---|---|---|---|")
    for entry in rounds:
        up, down = entry["upload_bytes"] / 1e6, entry["download_bytes"] / 1e6
        took = entry["seconds"]  # nobody knows, where the server died in the round
        print(
            f"| {entry['round']} | {entry['reports']} of {entry['invited']} "
            f"| {'–' if took is None else f'{took:.1f}'} | {up:.2f} | {down:.2f} |"
        )


def _print_quality(name: str, folder: RunFolder) -> None:
    rows = {row["name"]: row for row in read_json(folder.evaluation_path)["rows"]}
    for row in (rows["federated model"], rows["public pretraining"]):
        print(
            f"{name}, {row['name']}: perplexity {row['perplexity']:.1f}, "
            f"top-1 {row['top1']:.1%}, top-3 {row['top3']:.1%}",
            flush=True,
        )


class _Rounds(ProgressListener):
    def round_done(self, entry: dict[str, Any], rounds: int) -> None:
        print(f"round {entry['round']}: {entry['reports']} reports", flush=True)


def _log_to(path: Path, level: int = logging.INFO) -> None:
    logger = logging.getLogger("pfl_lm.network")
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--deaths", type=int, default=1, help="before each message of a round")
    parser.add_argument("--folder", help="keeps keys, first model, logs and runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
