"""`pfl-lm enrol`, `pfl-lm serve`, `pfl-lm device run`: rounds of training over the network."""

from __future__ import annotations

import logging
import os
import re
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.browsers import keyboard_page
from pfl_lm.cli.recipes import ScenarioPath, Settings, read

if TYPE_CHECKING:
    from pfl_lm.network.certificates import ServerCertificate
    from pfl_lm.network.identity import DeviceKey
    from pfl_lm.network.task_config import DeviceSetup

DAY = 86_400.0  # seconds: what waits longer is no round


def enrol(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the keys, new.")],
    devices: Annotated[int, number(1, 10**7, "How many devices may take part.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address under which devices call the server; repeat it."),
    ] = None,
    days: Annotated[
        int,
        number(1, 3650, "Days for which the certificates of server and devices are valid."),
    ] = 365,
) -> None:
    """Make the keys of a server and its devices.

    Writes an identity for every device (devices/), the list of the enrolled and a certificate for
    the server (server/), and the authority that vouches for the identities (authority.key: take
    it away from the server). In production devices make their own keys and hand in the public
    half; the formats are the same. Server and devices refuse certificates before and after their
    dates.
    """
    from pfl_lm.network.identity import enrol

    enrol(output, devices, host or ("localhost", "127.0.0.1"), days)
    typer.echo(f"wrote {output}: {devices} devices, the server's certificate, the authority")


def serve(
    recipe: ScenarioPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")],
    keys: Annotated[Path, typer.Option(help="Folder that `pfl-lm enrol` wrote.")],
    listen: Annotated[str, typer.Option(help="host:port to listen on.")] = "127.0.0.1:8443",
    present: Annotated[
        int | None,
        number(1, 10**7, "Devices that must be there before a round is opened (a cohort)."),
    ] = None,
    training_seconds: Annotated[
        float,
        number(0.1, DAY, "Time to train, from the invitation to a device's first message."),
    ] = 120.0,
    phase_seconds: Annotated[float, number(0.1, DAY, "Time for each later message.")] = 30.0,
    grace_seconds: Annotated[float, number(0.1, DAY, "Time for the last tenth of them.")] = 10.0,
    revoked: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Revoked identity keys, one a line as in server/enrolled.txt; their devices are "
            "left out. State it again with --resume.",
        ),
    ] = None,
    trial: Annotated[
        bool,
        typer.Option(
            help="Run rounds that protect nobody: fewer devices or reports than the policy's, "
            "weaker secure aggregation, seeded noise, or no policy. Only trial devices take part."
        ),
    ] = False,
    ledgers: Annotated[
        Path | None,
        typer.Option(help="Folder of the populations' ledgers [KEYS/server/ledgers]."),
    ] = None,
    web: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Also answer browsers: serve this bundle's keyboard page, which may take part.",
        ),
    ] = None,
    web_listen: Annotated[
        str,
        typer.Option(
            help="IP address and port for browsers: HTTP on the loopback address, else HTTPS."
        ),
    ] = "127.0.0.1:8444",
    resume: Annotated[bool, typer.Option(help="Go on after a stop or a crash.")] = False,
    overwrite: Annotated[
        bool, typer.Option(help="Delete an earlier run in that folder first.")
    ] = False,
    settings: Settings = None,
) -> None:
    """Train a model with devices that call over the network (gRPC, TLS).

    The run must keep its policy: the policy's report goal as cohort, at least its population
    enrolled, noise added by the devices, rotation, and secure aggregation that signs keys and
    survivors unless the scenario says otherwise. Devices compare all of it with their own policy
    and refuse anything less; --trial is for experiments.

    A device that spoils a round, by dealing shares that do not fit what it committed to, is left
    out of the rest of the run, also after --resume.

    Each round is debited to the ledger of everybody whom the keys' authority vouches for, over all
    runs (`pfl-lm privacy population`, which also states their total). A run that would exceed it
    does not begin, and --overwrite does not delete their rounds.

    The run folder is that of `pfl-lm simulate`, for `report` and `audit` alike. Killed at any
    point, the server goes on with --resume: no spent budget is lost and no round opened twice.
    The scenario's population gives the held-out text only; the devices bring their own.

    With --web browsers take part too, on the keyboard page; `pfl-lm device link` enrols one. The
    bundle must be exported from a run of the same vocabulary, model, payload and training.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a line for each bad byte of a stranger
    from pfl_lm.cli.progress import RunLines, summarise
    from pfl_lm.native.tuning import tune
    from pfl_lm.network.exclusions import read_revoked
    from pfl_lm.network.identity import ServerKeys
    from pfl_lm.network.server import Serving
    from pfl_lm.network.server import serve as run
    from pfl_lm.network.transport import Limits
    from pfl_lm.report.page import write_report
    from pfl_lm.run.scenario import Scenario

    if resume and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite deletes it: choose one")
    limits = Limits(
        phase_seconds=phase_seconds,
        training_seconds=training_seconds,
        grace_seconds=grace_seconds,
    )
    tune(1)
    _log_to_terminal()
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    out = read_revoked(revoked) if revoked else frozenset()
    serving = Serving(ServerKeys(keys), listen, limits, present, trial, ledgers, revoked=out)
    with ExitStack() as opened:
        if web is not None:
            page = keyboard_page(web, web_listen, serving.keys, opened)
            serving = replace(serving, browsers=page)
        scenario = read(Scenario, recipe, settings)
        folder = run(scenario, output, serving, RunLines(), resume, overwrite)
    summarise(folder, write_report(folder.path))


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
    record: Annotated[
        Path | None,
        typer.Option(
            help="This phone's participation record; made where it does not exist "
            "[KEY with the ending .record]."
        ),
    ] = None,
    first_install: Annotated[
        bool,
        typer.Option(
            help="Vouch that this user never took part before: a new record then need not wait."
        ),
    ] = False,
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

    With --text, --tokenizer and --policy it trains on that text at full strength: it compares the
    policy's every number with what the server states (population, min_separation, rounds, report
    goal, noise, payload, and who secure aggregation withstands) and leaves if one promises less.
    It writes each round into its record before it reports, and refuses rounds inside the policy's
    min_separation, beyond its ε, and of another run, seed or policy. A phone whose record is new
    waits for the policy's devices.trust_days: it may have taken part before a reinstall.

    With --trial it plays an invented user, for experiments: nobody is protected.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # our own lines say what went wrong
    from pfl_lm.native.tuning import tune
    from pfl_lm.network.certificates import ServerCertificate
    from pfl_lm.network.identity import DeviceKey

    if not re.fullmatch(r"[^/\s]+:[0-9]{1,5}", server):
        raise ValueError(f"--server {server}: expected host:port, such as fl.example.org:8443")
    tune(1)
    _log_to_terminal()
    keys = [DeviceKey.read(path) for path in key]
    for one in keys:
        one.check_dates()
    if trial is not None and (record is not None or first_install):
        raise ValueError("--trial keeps no record: leave out --record and --first-install")
    if trial is None and len(keys) > 1:
        raise ValueError("one text is one device's: name one KEY, or play several with --trial")
    if trial is not None:
        setups = _played_setups(trial, keys)
    else:
        kept = record or key[0].with_suffix(".record")
        setups = [_own_setup(text, tokenizer, policy, kept, first_install)]
    certificate = ServerCertificate.read(ca)
    certificate.check_dates()
    typer.echo(f"calling {server}", err=True)
    failed: list[Exception] = []
    threads = [
        threading.Thread(
            target=_run_device, args=(server, certificate, k, setup, failed), daemon=True
        )
        for k, setup in zip(keys, setups, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def _run_device(
    server: str,
    certificate: ServerCertificate,
    key: DeviceKey,
    setup: DeviceSetup,
    failed: list[Exception],
) -> None:
    from pfl_lm.network.device import Device
    from pfl_lm.network.rpc_client import RpcClient
    from pfl_lm.network.transport import channel_to

    try:
        with channel_to(server, certificate.path) as channel:
            rounds = Device(RpcClient(channel, key, certificate.digest), key, setup).run()
        typer.echo(f"device {key.number} took part in {rounds} rounds")
    except (ValueError, OSError) as error:
        failed.append(error)


def _own_setup(
    text: Path | None,
    tokenizer: Path | None,
    policy: Path | None,
    record: Path,
    first_install: bool,
) -> DeviceSetup:
    from pfl_lm.dp.policy import Policy
    from pfl_lm.network.participation_record import ParticipationRecord
    from pfl_lm.network.task_config import DeviceSetup, own_tokens
    from pfl_lm.recipes import load
    from pfl_lm.text.tokenizer import Tokenizer

    if text is None or tokenizer is None or policy is None:
        raise ValueError("state --text, --tokenizer and --policy, or --trial SCENARIO")
    try:
        written = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{text} is no UTF-8 text ({error}); convert it") from error
    vocabulary = Tokenizer.open(tokenizer)
    tokens = own_tokens(written, vocabulary)
    rules = load(Policy, policy)
    return DeviceSetup(vocabulary, rules, tokens, ParticipationRecord(record, first_install))


def _played_setups(scenario: Path, keys: list[DeviceKey]) -> list[DeviceSetup]:
    from pfl_lm.network.task_config import DeviceSetup
    from pfl_lm.recipes import load
    from pfl_lm.run.scenario import Scenario
    from pfl_lm.run.setup import open_run

    context = open_run(load(Scenario, scenario))
    users = context.population.users("train")
    if beyond := [key.number for key in keys if key.number >= users]:
        raise ValueError(f"device {beyond[0]} has no user: the population has {users}")
    return [
        DeviceSetup(
            context.tokenizer,
            context.privacy.policy,
            context.population.tokens("train", key.number),
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
        logger.addHandler(
            RichHandler(
                console=Console(stderr=True),
                show_path=False,
                markup=False,
                log_time_format="[%Y-%m-%d %X]",
            )
        )
