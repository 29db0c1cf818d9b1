"""The options of verbs that serve devices over the network, and what they make together."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.bounds import number

if TYPE_CHECKING:
    from pfl_lm.network.server import Serving

DAY = 86_400.0  # seconds: what waits longer is no round

Keys = Annotated[Path, typer.Option(help="Folder that `pfl-lm enrol` wrote.")]
Listen = Annotated[str, typer.Option(help="host:port to listen on.")]
Present = Annotated[
    int | None,
    number(1, 10**7, "Devices that must be there before a round is opened (a cohort)."),
]
TrainingSeconds = Annotated[
    float,
    number(0.1, DAY, "Time to train or answer, from the invitation to a device's first message."),
]
PhaseSeconds = Annotated[float, number(0.1, DAY, "Time for each later message.")]
GraceSeconds = Annotated[float, number(0.1, DAY, "Time for the last tenth of them.")]
Revoked = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Revoked identity keys, one a line as in server/enrolled.txt; their devices are "
        "left out. State it again with --resume.",
    ),
]
FrontEndCount = Annotated[
    int,
    number(
        1,
        64,
        "Processes that hold the devices' connections and speak gRPC and TLS, on the one port "
        "(Linux). With 1 the server does it itself; more use more processors.",
    ),
]
ServedLedgers = Annotated[
    Path | None,
    typer.Option(help="Folder of the populations' ledgers [KEYS/server/ledgers]."),
]


@dataclass(frozen=True)
class Calls:
    """The options by which a server answers devices that call."""

    listen: Listen = "127.0.0.1:8443"
    present: Present = None
    training_seconds: TrainingSeconds = 120.0
    phase_seconds: PhaseSeconds = 30.0
    grace_seconds: GraceSeconds = 10.0
    revoked: Revoked = None
    front_ends: FrontEndCount = 1

    @property
    def says_who_answers(self) -> bool:
        """Whether something was said that only devices that call have."""
        return bool(self.revoked or self.present or self.front_ends > 1)

    def serving(self, keys: Path, trial: bool, ledgers: Path | None) -> Serving:
        """Return how a server is set up, and send the lines of the network to the terminal.

        Raises:
            ValueError: a list of revoked keys that cannot be read, no gRPC, or a system that has
                no place for several front ends.
        """
        quieten()
        from pfl_lm.network.exclusions import read_revoked
        from pfl_lm.network.identity import ServerKeys
        from pfl_lm.network.server import Serving
        from pfl_lm.network.transport import Limits

        limits = Limits(
            phase_seconds=self.phase_seconds,
            training_seconds=self.training_seconds,
            grace_seconds=self.grace_seconds,
        )
        log_to_terminal()
        out = read_revoked(self.revoked) if self.revoked else frozenset()
        given = ServerKeys(keys), self.listen, limits, self.present, trial, ledgers
        return Serving(*given, revoked=out, front_ends=self.front_ends)


def quieten() -> None:
    """Keep gRPC's own lines off the terminal, and the kernels on one processor."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a line for each bad byte of a stranger
    from pfl_lm.native.tuning import tune

    tune(1, keep=False)
    logging.getLogger("grpc").setLevel(logging.CRITICAL)


def log_to_terminal() -> None:
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
