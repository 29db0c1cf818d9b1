"""`pfl-lm enrol`, `pfl-lm serve`, `pfl-lm device run`: rounds of training over the network."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.browsers import WEB_LISTEN, answered
from pfl_lm.cli.device_setups import own_setup, played_setups, setups_of_store
from pfl_lm.cli.hostile import Device, Hostile, attack
from pfl_lm.cli.recipes import ScenarioPath, Settings, read
from pfl_lm.cli.serving import Calls, Keys, ServedLedgers, log_to_terminal
from pfl_lm.cli.shared_options import with_options

if TYPE_CHECKING:
    from pfl_lm.network.certificates import ServerCertificate
    from pfl_lm.network.identity import DeviceKey
    from pfl_lm.network.task_config import DeviceSetup


def enrol(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the keys, new.")],
    devices: Annotated[int, number(1, 10**7, "How many devices may take part.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or address under which devices call the server; may be repeated "
            "[localhost and 127.0.0.1]."
        ),
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


@with_options(calls=Calls)
def serve(
    recipe: ScenarioPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")],
    keys: Keys,
    *,
    calls: Calls,
    trial: Annotated[
        bool,
        typer.Option(
            help="Run rounds that protect nobody: fewer devices or reports than the policy's, "
            "weaker secure aggregation, seeded noise, or no policy. Only trial devices take part."
        ),
    ] = False,
    ledgers: ServedLedgers = None,
    web: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="Also answer browsers: serve this bundle's keyboard page, which may take part.",
        ),
    ] = None,
    web_listen: Annotated[
        str | None,
        typer.Option(
            help="IP address and port for browsers: HTTP on the loopback address, else HTTPS "
            f"[{WEB_LISTEN} with --web]. Without --web it answers devices and gives no page."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on after a stop or a crash.")] = False,
    overwrite: Annotated[
        bool, typer.Option(help="Delete an earlier run in that folder first.")
    ] = False,
    hostile: Hostile = None,
    device: Device = None,
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

    With --hostile the server trains nothing: it attacks the device that calls and writes into the
    folder whether the device let itself be cheated. The exit status is 1 if it did, or if it left
    before the lie. Use keys made for this test: KEYS/authority.key certifies the other devices of
    each round, which the server plays itself. --phase-seconds is how long it waits for a device
    that says nothing. With --web-listen it attacks a device that calls over HTTPS.
    """
    from pfl_lm.network.addresses import check_host_and_port
    from pfl_lm.network.identity import ServerKeys
    from pfl_lm.run.scenario import Scenario

    check_host_and_port("--listen", calls.listen, "127.0.0.1:8443")
    if resume and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite deletes it: choose one")
    if device is not None and hostile is None:
        raise ValueError("--device belongs to --hostile: an honest server starts no device")
    if hostile is not None and calls.front_ends > 1:
        raise ValueError("--front-ends does not go with --hostile: it attacks one device")
    if hostile is not None:
        scenario = read(Scenario, recipe, settings)
        with ExitStack() as opened:
            browsers = answered(web, web_listen, ServerKeys(keys), opened)
            attack(hostile, device, scenario, keys, calls, browsers, trial, output)
        return
    serving = calls.serving(keys, trial, ledgers)
    from pfl_lm.cli.progress import RunLines, summarise
    from pfl_lm.network.server import serve as run
    from pfl_lm.report.page import write_report

    with ExitStack() as opened:
        browsers = answered(web, web_listen, serving.keys, opened)
        serving = replace(serving, browsers=browsers)
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
    total: Annotated[
        float | None,
        number(
            1e-6, 1e6, "ε of all runs and questions together; stated once [one run or question]."
        ),
    ] = None,
    delta: Annotated[
        float | None, number(1e-30, 0.5, "The δ at which --total is compared.")
    ] = None,
    trial: Annotated[
        Path | None,
        typer.Option(
            metavar="SCENARIO",
            help="Play the user of the key's number in this scenario's population, and accept "
            "rounds that protect nobody. For a question name a population's folder, with "
            "--tokenizer and --policy.",
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Which of the policy's public_labels this device is of, for a question by groups; "
            "the server does not learn it."
        ),
    ] = None,
) -> None:
    """Take part in training, or answer a question, as a device, until the run is over.

    With --text, --tokenizer and --policy it trains on that text at full strength: it compares the
    policy's every number with what the server states (population, min_separation, rounds, report
    goal, noise, payload, and who secure aggregation withstands) and leaves if one promises less.
    It writes each round into its record before it reports, and refuses rounds inside the policy's
    min_separation, beyond its ε, and of another run, seed or policy. A phone whose record is new
    waits for the policy's devices.trust_days: it may have taken part before a reinstall.

    With --total the record is about several runs and questions: the device takes part in each as
    its policy allows, and in all of them together as long as their ε stays within the total.

    A question (`pfl-lm words serve`) is answered in the same way, under the policy that --policy
    names: with the words of the text that the vocabulary lacks.

    With --trial it plays an invented user, for experiments: nobody is protected.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # our own lines say what went wrong
    from pfl_lm.native.tuning import tune
    from pfl_lm.network.addresses import check_host_and_port
    from pfl_lm.network.certificates import ServerCertificate
    from pfl_lm.network.identity import DeviceKey

    check_host_and_port("--server", server, "fl.example.org:8443")
    tune(1)
    log_to_terminal()
    keys = [DeviceKey.read(path) for path in key]
    for one in keys:
        one.check_dates()
    if trial is not None and (record is not None or first_install or total is not None):
        raise ValueError("--trial keeps no record: leave out --record, --first-install, --total")
    if (delta is None) != (total is None):
        raise ValueError("--total and --delta belong together: state both")
    if trial is None and len(keys) > 1:
        raise ValueError("one text is one device's: name one KEY, or play several with --trial")
    if trial is not None and trial.is_dir():
        setups = setups_of_store(trial, tokenizer, policy, keys)
    elif trial is not None:
        setups = played_setups(trial, keys)
    else:
        kept = record or key[0].with_suffix(".record")
        setups = [own_setup(text, tokenizer, policy, kept, first_install, total, delta)]
    setups = [replace(setup, group=group) for setup in setups]
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
    from pfl_lm.network.device import participant
    from pfl_lm.network.rpc_client import RpcClient
    from pfl_lm.network.transport import channel_to

    try:
        with channel_to(server, certificate.path) as channel:
            client = RpcClient(channel, key, certificate.digest)
            rounds = participant(client, key, setup).run()
        typer.echo(f"device {key.number} took part in {rounds} rounds")
    except Exception as error:  # of a thread: nobody else would hear of it
        typer.echo(f"device {key.number} stopped: {error}", err=True)
        failed.append(error)
