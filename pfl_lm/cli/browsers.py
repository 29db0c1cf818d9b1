"""`pfl-lm device link` and `pfl-lm serve --web`: browsers as devices."""

from __future__ import annotations

import io
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pfl_lm.network.identity import ServerKeys
    from pfl_lm.network.web import Browsers

WEB_LISTEN = "127.0.0.1:8444"


def link(
    key: Annotated[
        list[Path], typer.Argument(metavar="KEY...", help="A device's key file; several: several.")
    ],
    page: Annotated[str, typer.Option(help="Address of the page that `serve --web` prints.")],
    ca: Annotated[Path, typer.Option(help="The server's certificate (server/tls.pem).")],
    first_install: Annotated[
        bool,
        typer.Option(
            help="Vouch that these users never took part before: a new record then need not wait."
        ),
    ] = False,
    qr: Annotated[
        bool,
        typer.Option(
            "--qr",
            help="Draw each link as a QR code too, for a phone's camera, on a dark terminal.",
        ),
    ] = False,
) -> None:
    """Print the link that enrols a browser: it carries a device's key, once.

    A person who has the link has the key. The key stands behind the #, which browsers send to no
    server, and the page takes it out of its address. Hand each link to one person, over a channel
    that nobody else reads, and delete the key file. With --qr that person points a camera at this
    screen, and the link need not be sent; clear the screen afterwards.
    """
    from pfl_lm.keyboard.take_part import enrolment_link
    from pfl_lm.network.certificates import ServerCertificate
    from pfl_lm.network.identity import DeviceKey

    if not page.startswith(("https://", "http://")):
        raise ValueError(f"--page {page}: expected the address that `pfl-lm serve --web` prints")
    certificate = ServerCertificate.read(ca)
    certificate.check_dates()
    for path in key:
        one = DeviceKey.read(path)
        one.check_dates()
        address = enrolment_link(page, one, certificate, first_install)
        if qr:
            typer.echo(_drawn(address))
        typer.echo(address)


def _drawn(address: str) -> str:
    """Return a QR code of half blocks, light on dark.

    Raises:
        ValueError: segno is not installed, or the terminal cannot show the code.
    """
    try:
        import segno
    except ImportError as error:
        raise ValueError("--qr needs segno: pip install pfl-lm[network]") from error
    drawn = io.StringIO()
    segno.make(address, micro=False, error="l", boost_error=False).terminal(drawn, compact=True)
    wide = drawn.getvalue().index("\n")
    if sys.stdout.isatty() and (columns := shutil.get_terminal_size().columns) < wide:
        raise ValueError(f"--qr: the code is {wide} columns wide, the terminal {columns}; widen it")
    try:
        drawn.getvalue().encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"--qr: {error.encoding} has no blocks; use a UTF-8 terminal") from None
    return drawn.getvalue()


def answered(
    web: Path | None, listen: str | None, keys: ServerKeys, opened: ExitStack
) -> Browsers | None:
    """Return how a server answers browsers: by the page of a bundle, or devices alone.

    Args:
        web: the bundle, which ``opened`` closes; None: no page, if ``listen`` is stated.
        listen: address and port; None: the default of ``web``.
    """
    if web is None and listen is None:
        return None
    from pfl_lm.network.web import Browsers, WebAddress

    at = WebAddress(listen or WEB_LISTEN, keys)
    if web is None:
        return Browsers(at)
    from pfl_lm.export.bundle import opened as open_bundle
    from pfl_lm.keyboard.take_part import KeyboardPage

    return KeyboardPage.of(opened.enter_context(open_bundle(web)), at)
