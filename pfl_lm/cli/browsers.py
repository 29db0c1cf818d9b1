"""`pfl-lm device link` and `pfl-lm serve --web`: browsers as devices."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pfl_lm.keyboard.take_part import KeyboardPage
    from pfl_lm.network.identity import ServerKeys


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
) -> None:
    """Print the link that enrols a browser: it carries a device's key, once.

    A person who has the link has the key. The key stands behind the #, which browsers send to no
    server, and the page takes it out of its address. Hand each link to one person, over a channel
    that nobody else reads, and delete the key file.
    """
    from pfl_lm.keyboard.take_part import enrolment_link
    from pfl_lm.network.certificates import ServerCertificate
    from pfl_lm.network.identity import DeviceKey

    if not page.startswith(("https://", "http://")):
        raise ValueError(f"--page {page}: expected the address that `pfl-lm serve --web` prints")
    certificate = ServerCertificate.read(ca)
    for path in key:
        one = DeviceKey.read(path)
        one.check_dates()
        typer.echo(enrolment_link(page, one, certificate, first_install))


def keyboard_page(bundle: Path, listen: str, keys: ServerKeys, opened: ExitStack) -> KeyboardPage:
    """Open the page by which a server answers browsers; ``opened`` closes the bundle."""
    from pfl_lm.export.bundle import opened as open_bundle
    from pfl_lm.keyboard.take_part import KeyboardPage
    from pfl_lm.network.web import WebAddress

    at = WebAddress(listen, keys)
    return KeyboardPage.of(opened.enter_context(open_bundle(bundle)), at)
