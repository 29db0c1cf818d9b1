"""The keyboard page of a served run: it suggests by a bundle's graphs, and may take part."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfl_lm.export.bundle import MANIFEST, Bundle
from pfl_lm.keyboard.site import Site
from pfl_lm.network.certificates import ServerCertificate
from pfl_lm.network.identity import DeviceKey
from pfl_lm.network.web import Browsers, WebAddress
from pfl_lm.run.context import RunContext
from pfl_lm.run.folder import read_json
from pfl_lm.web_device import FOLDER


@dataclass(frozen=True)
class KeyboardPage(Browsers):
    """How a server answers browsers by the keyboard page of a bundle.

    Attributes:
        bundle: the app's; its ``train_step`` is what a page trains by.
        train_step: entry of that graph in ``bundle.json``.
    """

    bundle: Bundle | None = None
    train_step: str = ""

    @classmethod
    def of(cls, bundle: Bundle, at: WebAddress) -> KeyboardPage:
        """Choose the graphs and gather the page's files.

        Raises:
            ValueError: the bundle lacks a graph to predict or to train by in ONNX, or the web
                runtime is not here.
        """
        site = Site.of(bundle)
        if not site.in_page:
            raise ValueError(f"--web: {site.because}")
        entries = bundle.graphs("train_step", "onnx")
        if not entries:
            raise ValueError(
                "--web: the bundle has no train_step in ONNX; export the run without --no-train"
            )
        path = entries[0]["path"]
        files: dict[str, Path | bytes] = {**site.files(), f"bundle/{path}": bundle.path(path)}
        files |= {f"web_device/{one.name}": one for one in FOLDER.glob("*.mjs")}
        about = json.loads(site.about()) | {"take_part": True}
        return cls(at, {**files, "site.json": json.dumps(about).encode()}, bundle, path)

    def check(self, context: RunContext, trial: bool) -> None:
        """Refuse a run in which the page cannot take part, or that is not the bundle's.

        Raises:
            ValueError: naming what differs.
        """
        super().check(context, trial)
        if differing := [*self._differences(context)]:
            raise ValueError(
                f"--web: the bundle was exported from another run: {', '.join(differing)} differ; "
                "export a run of this scenario's vocabulary, model, payload and training"
            )

    def task(self, context: RunContext, trial: bool) -> dict[str, Any]:
        """Return what ``take_part.json`` holds: the run, and by which graph to train."""
        return super().task(context, trial) | {"train_step": self.train_step}

    def _differences(self, context: RunContext) -> Iterator[str]:
        assert self.bundle is not None
        scenario, index = context.scenario, self.bundle.index
        exported = read_json(self.bundle.path(MANIFEST))["scenario"]
        if index.vocabulary["digest"] != context.tokenizer.digest:
            yield "vocabulary"
        stated = {"model": index.model["spec"]}
        stated |= {name: exported[name] for name in ("payload", "training")}
        for name, value in stated.items():
            if value != json.loads(json.dumps(asdict(getattr(scenario, name)))):
                yield name


def enrolment_link(
    page: str, key: DeviceKey, certificate: ServerCertificate, first_install: bool = False
) -> str:
    """Return the link that brings a device's key into a browser.

    The key stands behind ``#``, which a browser sends to no server.

    Args:
        page: the page's address.
        first_install: vouch that this phone's user never took part before.
    """
    content = {
        "number": key.number,
        "secret": key.identity.secret.hex(),
        "certificate": key.identity.certificate.hex(),
        "authority": key.authority.hex(),
        "server": certificate.digest.hex(),
        "first_install": first_install,
    }
    coded = base64.urlsafe_b64encode(json.dumps(content, separators=(",", ":")).encode())
    return f"{page.split('#')[0]}#enrol={coded.decode().rstrip('=')}"
