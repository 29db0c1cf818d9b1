"""`pfl-lm enrol`, `pfl-lm serve`, `pfl-lm device run`: rounds of training over the network."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pfl_lm.network.identity import DeviceKey
    from pfl_lm.network.terms import Own


def enrol(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the keys, new.")],
    devices: Annotated[int, typer.Option(help="How many devices may take part.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address under which devices call the server; repeat it."),
    ] = None,
) -> None:
    """Make the keys of a server and its devices.

    Writes an identity for every device (devices/), the list of the enrolled and a certificate for
    the server (server/), and the authority that vouches for the identities (authority.key: take
    it away from the server). In production devices make their own keys and hand in the public
    half; the formats are the same.
    """
    from pfl_lm.network.identity import enrol

    enrol(output, devices, host or ("localhost", "127.0.0.1"))
    typer.echo(f"wrote {output}: {devices} devices, the server's certificate, the authority")


def serve(
    recipe: Annotated[Path, typer.Argument(metavar="SCENARIO", help="simulations/*.toml")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")],
    keys: Annotated[Path, typer.Option(help="Folder that `pfl-lm enrol` wrote.")],
    listen: Annotated[str, typer.Option(help="host:port to listen on.")] = "127.0.0.1:8443",
    present: Annotated[
        int | None,
        typer.Option(help="Devices that must be there before a round is opened (a cohort)."),
    ] = None,
    training_seconds: Annotated[
        float, typer.Option(help="Time to train, from the invitation to a device's first message.")
    ] = 120.0,
    phase_seconds: Annotated[float, typer.Option(help="Time for each later message.")] = 30.0,
    grace_seconds: Annotated[float, typer.Option(help="Time for the last tenth of them.")] = 10.0,
    resume: Annotated[bool, typer.Option(help="Go on after a stop or a crash.")] = False,
    overwrite: Annotated[
        bool, typer.Option(help="Delete an earlier run in that folder first.")
    ] = False,
) -> None:
    """Train a model with devices that call over the network (gRPC, TLS).

    The run folder is that of `pfl-lm simulate`, for `report` and `audit` alike. Killed at any
    point, the server goes on with --resume: no spent budget is lost and no round opened twice.
    The scenario's population gives the held-out text only; the devices bring their own.
    """
    from pfl_lm.cli.progress import summarise
    from pfl_lm.machine import tune
    from pfl_lm.network.identity import ServerKeys
    from pfl_lm.network.server import Serving
    from pfl_lm.network.server import serve as run
    from pfl_lm.network.transport import Limits
    from pfl_lm.recipes import load
    from pfl_lm.report.page import write_report
    from pfl_lm.scenario import Scenario

    if resume and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite deletes it: choose one")
    limits = Limits(
        phase_seconds=phase_seconds,
        training_seconds=training_seconds,
        grace_seconds=grace_seconds,
    )
    tune(1)
    _log_to_terminal()
    serving = Serving(ServerKeys(keys), listen, limits, present)
    folder = run(load(Scenario, recipe), output, serving, _Lines(), resume, overwrite)
    summarise(folder, write_report(folder.path))


class _Lines:
    """A server's screen is its log: one line a round, one an evaluation."""

    def say(self, line: str) -> None:
        logging.getLogger("pfl_lm.network").info("%s", line)

    def round_done(self, entry: dict[str, Any], rounds: int) -> None:
        spent = "∞" if entry["epsilon"] is None else f"{entry['epsilon']:.3f}"
        self.say(
            f"round {entry['round']} of {rounds}: {entry['reports']} of {entry['invited']} "
            f"reports, ε {spent}, {entry['seconds']:.1f} s"
        )

    def evaluated(self, entry: dict[str, Any]) -> None:
        self.say(
            f"after {entry['round']} rounds: perplexity {entry['perplexity']:.1f}, "
            f"top-3 {entry['top3']:.1%}"
        )


def device(
    key: Annotated[
        list[Path], typer.Argument(metavar="KEY...", help="A device's key file; several: several.")
    ],
    server: Annotated[str, typer.Option(help="host:port of the server.")],
    ca: Annotated[Path, typer.Option(help="The server's certificate (server/tls.pem).")],
    text: Annotated[
        Path | None, typer.Option(help="This user's text, a message a line; it stays here.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the vocabulary.")] = None,
    policy: Annotated[Path | None, typer.Option(help="The privacy policy that must hold.")] = None,
    trial: Annotated[
        Path | None,
        typer.Option(
            metavar="SCENARIO",
            help="Play the user of the key's number in this scenario's population, and accept "
            "rounds that protect nobody.",
        ),
    ] = None,
) -> None:
    """Take part in training as a device, until the run is over.

    With --text, --tokenizer and --policy it trains on that text, and only under that very policy
    at full strength: its report goal, noise from the operating system. With --trial it plays an
    invented user, for experiments.
    """
    from pfl_lm.machine import tune
    from pfl_lm.network.identity import DeviceKey

    tune(1)
    _log_to_terminal()
    keys = [DeviceKey.read(path) for path in key]
    owns = _played(trial, keys) if trial is not None else [_own(text, tokenizer, policy)]
    if len(owns) != len(keys):
        raise ValueError("one text is one device's: name one KEY, or play several with --trial")
    failed: list[Exception] = []
    threads = [
        threading.Thread(target=_run_device, args=(server, ca, k, own, failed), daemon=True)
        for k, own in zip(keys, owns, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def _run_device(server: str, ca: Path, key: DeviceKey, own: Own, failed: list[Exception]) -> None:
    from pfl_lm.network.caller import Caller
    from pfl_lm.network.device import Device
    from pfl_lm.network.transport import channel_to

    try:
        with channel_to(server, ca) as channel:
            rounds = Device(Caller(channel, key), key, own).run()
        typer.echo(f"device {key.number} took part in {rounds} rounds")
    except (ValueError, OSError) as error:
        failed.append(error)


def _own(text: Path | None, tokenizer: Path | None, policy: Path | None) -> Own:
    from pfl_lm.language.tokenizer import Tokenizer
    from pfl_lm.network.terms import Own, own_tokens
    from pfl_lm.recipes import load_policy

    if text is None or tokenizer is None or policy is None:
        raise ValueError("state --text, --tokenizer and --policy, or --trial SCENARIO")
    vocabulary = Tokenizer.open(tokenizer)
    tokens = own_tokens(text.read_text(encoding="utf-8"), vocabulary)
    return Own(vocabulary, load_policy(policy), tokens)


def _played(scenario: Path, keys: list[DeviceKey]) -> list[Own]:
    from pfl_lm.network.terms import Own
    from pfl_lm.recipes import load
    from pfl_lm.scenario import Scenario
    from pfl_lm.world import open_world

    world = open_world(load(Scenario, scenario))
    users = world.population.users("train")
    if beyond := [key.number for key in keys if key.number >= users]:
        raise ValueError(f"device {beyond[0]} has no user: the population has {users}")
    return [
        Own(
            world.tokenizer,
            world.protection.policy,
            world.population.tokens("train", key.number),
            trial=True,
        )
        for key in keys
    ]


def _log_to_terminal() -> None:
    """Send the lines of the network to standard error, as they happen."""
    from rich.console import Console
    from rich.logging import RichHandler

    logger = logging.getLogger("pfl_lm.network")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(RichHandler(console=Console(stderr=True), show_path=False, markup=False))
