"""Thousands of devices, played by a few processes, take part in rounds of one server over TLS.

    python -m benchmarks.load --devices 1000 [--dim 140000] [--rounds 3] [--front-ends 2]

The server is ``pfl_lm.network.server.serve``, in a process of its own, with front ends or without.
Every device has its own key, session and connection, downloads the model, and speaks secure
aggregation with real cryptography; what it reports is ready-made, and nobody trains.

In every round a tenth of the devices fall silent, a fourth of them before each of the four
messages; a twentieth are slow, send garbage, or replay the report of the round before; others each
time (``load_devices``). k and t are those of ``secagg.parameters`` for a cohort of this size, 5%
corrupt devices and 20% dropouts.

Printed are reports against those that devices handed in, CPU seconds of server and devices, the
part of them that is the protocol's arithmetic, and the server's memory after each round: of its
process and its front ends together, and of each.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

from benchmarks.load_devices import play
from benchmarks.network import _fork, _log_to
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.models.models import ModelSpec
from pfl_lm.native.tuning import tune
from pfl_lm.network.identity import ServerKeys, enrol
from pfl_lm.network.server import Serving, serve
from pfl_lm.network.transport import Limits
from pfl_lm.run.context import choose_payload
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.scenario import EvaluationConfig, PopulationConfig, Scenario
from pfl_lm.run.setup import open_run
from pfl_lm.secagg import server as phases

_PATIENT = 3600.0  # seconds: devices share the processors with the server
_EMBEDDING, _HIDDEN = 8, 16


def main() -> None:
    """Run one server with its devices, and print the figures that RESULTS.md shows."""
    arguments = _arguments()
    tune(1, keep=False)
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="load-"))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "keys").exists():
        enrol(folder / "keys", arguments.devices)
    scenario = _scenario(arguments)
    dim = choose_payload(open_run(scenario), 0).dim
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (folder / "server.jsonl").unlink(missing_ok=True)  # of an earlier run
    gc.freeze()
    started = time.monotonic()
    server = _fork(partial(_serve, scenario, folder, address, arguments))
    players = [
        _fork(partial(_play, folder, address, number, arguments))
        for number in range(arguments.processes)
    ]
    status = os.waitstatus_to_exitcode(os.waitpid(server, 0)[1])
    if status:
        for player in players:
            os.kill(player, signal.SIGKILL)
        raise SystemExit(f"the server failed; see {folder / 'server.log'}")
    for player in players:
        os.waitpid(player, 0)
    _print(folder, dim, arguments, time.monotonic() - started)


def _scenario(arguments: argparse.Namespace) -> Scenario:
    """A model with about as many parameters as wanted, all of which travel."""
    vocabulary = max(100, round(arguments.dim / (_EMBEDDING + 1)) - 150)
    return Scenario(
        population=PopulationConfig("synthetic", users=arguments.devices, tokens_per_user=8),
        model=ModelSpec(
            "cifg_lstm", vocabulary_size=vocabulary, embedding_dim=_EMBEDDING, hidden_dim=_HIDDEN
        ),
        training=LocalTraining(0.5, batch_size=4, window=8, max_tokens=64),
        rounds=arguments.rounds,
        cohort=arguments.devices,
        clip_norm=0.5,
        seed=1,
        reproducible=True,
        adversary=arguments.adversary,
        dropout=0.2,
        evaluation=EvaluationConfig(0, users=1, final_users=1, tokens_per_user=8),
        checkpoint_every=max(1, arguments.rounds),
    )


class _Watch(ProgressListener):
    """Writes down after each round what the server has used so far."""

    def __init__(self, path: Path, arithmetic: dict[str, float]) -> None:
        self._path, self._arithmetic = path, arithmetic

    def round_done(self, entry: dict[str, Any], rounds: int) -> None:
        line = {
            "round": entry["round"],
            "reports": entry["reports"],
            "seconds": entry["seconds"],
            "arithmetic": dict(self._arithmetic),
            "processes": [_used(pid) for pid in [str(os.getpid()), *_children()]],
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _serve(scenario: Scenario, folder: Path, address: str, arguments: argparse.Namespace) -> None:
    _log_to(folder / "server.log")
    arithmetic: dict[str, float] = {}
    for phase in ("Keys", "Shares", "Inputs", "Confirmations", "Answers"):
        kind = getattr(phases, f"Collecting{phase}")
        for method in ("receive", "close"):
            _count(kind, method, f"{phase.lower()} {method}", arithmetic)
    keys = ServerKeys(folder / "keys")
    limits = Limits(
        training_seconds=_PATIENT,
        phase_seconds=_PATIENT,
        gather_seconds=_PATIENT,
        grace_seconds=arguments.grace,
        hold_seconds=100.0,  # thousands that ask every 20 s would keep the server busy
    )
    serving = Serving(
        keys, address, limits, arguments.devices, trial=True, front_ends=arguments.front_ends
    )
    watch = _Watch(folder / "server.jsonl", arithmetic)
    if not arguments.profile:
        serve(scenario, folder / "served", serving, watch, overwrite=True)
        return
    import cProfile

    profile = cProfile.Profile(time.thread_time)  # of the event loop's thread
    profile.runcall(serve, scenario, folder / "served", serving, watch, overwrite=True)
    profile.dump_stats(arguments.profile)


def _count(kind: type, method: str, name: str, seconds: dict[str, float]) -> None:
    """Add up the CPU time of a method of a phase, which is the protocol's own arithmetic."""
    call: Callable[..., Any] = getattr(kind, method)

    @wraps(call)
    def counted(*arguments: Any) -> Any:
        start = time.thread_time()
        try:
            return call(*arguments)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.thread_time() - start

    setattr(kind, method, counted)


def _play(folder: Path, address: str, number: int, arguments: argparse.Namespace) -> None:
    _log_to(folder / "devices.log")
    numbers = range(number, arguments.devices, arguments.processes)
    figures = play(ServerKeys(folder / "keys"), address, numbers, arguments.devices)
    (folder / f"devices-{number}.json").write_text(json.dumps(figures), encoding="utf-8")


def _children() -> list[str]:
    """The processes that this one started: the front ends, in the order of their start."""
    lists = Path("/proc/self/task").glob("*/children")
    return sorted((pid for path in lists for pid in path.read_text().split()), key=int)


def _used(pid: str) -> dict[str, float]:
    """CPU seconds of a process, and its resident memory now and at its most, bytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return {
        "cpu": sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
        "resident": 1024 * int(fields["VmRSS"]),
        "peak": 1024 * int(fields["VmHWM"]),
    }


def _each(line: dict[str, Any], figure: str, unit: float) -> str:
    """Write a figure of all processes together, and of each where there are several."""
    parts = [process[figure] / unit for process in line["processes"]]
    each = " = " + " + ".join(f"{part:.0f}" for part in parts) if len(parts) > 1 else ""
    return f"{sum(parts):.0f}{each}"


def _print(folder: Path, dim: int, arguments: argparse.Namespace, seconds: float) -> None:
    from benchmarks.secagg_parts import machine_rates

    rounds = [json.loads(line) for line in (folder / "server.jsonl").open(encoding="utf-8")]
    played = [json.loads(path.read_text()) for path in sorted(folder.glob("devices-*.json"))]
    total: dict[str, float] = {}
    for figures in played:
        for name, value in figures["totals"].items():
            total[name] = total.get(name, 0) + value
    stream, agreements = machine_rates()
    print(f"{arguments.devices} devices, d = {dim:,}, {figures['round']}, {seconds:.0f} s in all")
    print(f"keystream {stream / 1e9:.1f} GB/s, {agreements:,.0f} agreements/s")
    print("| round | reports | handed in | seconds | server CPU s | of it arithmetic | memory MB |")
    print("|---|---|---|---|---|---|---|")
    for line in rounds:
        line["cpu"] = sum(process["cpu"] for process in line["processes"])
    before: dict[str, Any] = {"cpu": 0.0, "arithmetic": {}}
    for line in rounds:
        handed = sum(figures["reports"].get(str(line["round"]), 0) for figures in played)
        spent = line["cpu"] - before["cpu"]
        own = sum(line["arithmetic"].values()) - sum(before["arithmetic"].values())
        print(
            f"| {line['round']} | {line['reports']} | {handed} | {line['seconds']:.0f} "
            f"| {spent:.1f} | {own:.1f} | {_each(line, 'resident', 1e6)} |"
        )
        before = line
    parts = ", ".join(f"{name} {used:.2f}" for name, used in before["arithmetic"].items())
    print(f"arithmetic of the server, CPU s: {parts}")
    count = arguments.devices * len(rounds)
    own = sum(before["arithmetic"].values())
    print(
        f"server: {_each(before, 'cpu', 1)} CPU s, {before['cpu'] / own:.2f} x its arithmetic, "
        f"{1000 * before['cpu'] / count:.1f} ms a device and round, "
        f"peak memory {_each(before, 'peak', 1e6)} MB"
    )
    print(
        f"devices: {1000 * total['cpu'] / count:.1f} ms of CPU each a round, "
        f"{total['cpu'] / total['arithmetic']:.2f} x their arithmetic"
    )
    both = (before["cpu"] + total["cpu"]) / (own + total["arithmetic"])
    print(f"both together: {both:.2f} x the protocol's arithmetic")
    print(
        f"{total['messages']:,.0f} calls, {total['messages'] / count:.1f} a device and round, "
        f"{total['empty']:,.0f} of them empty, {total.get('repeated', 0):,.0f} repeated; "
        f"{total['up'] / 1e6:,.0f} MB up and {total['down'] / 1e6:,.0f} MB down; "
        "a second of the server's CPU: "
        f"{total['messages'] / before['cpu']:,.0f} calls, "
        f"{(total['up'] + total['down']) / 1e6 / before['cpu']:,.0f} MB"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=140_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="that play the devices")
    parser.add_argument("--front-ends", type=int, default=1)
    parser.add_argument("--grace", type=float, default=15.0, help="seconds for the last tenth")
    parser.add_argument("--adversary", default="semi-honest", choices=["semi-honest", "active"])
    parser.add_argument("--folder", help="keeps keys, logs and the run")
    parser.add_argument("--profile", help="write a profile of the server's event loop here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
