"""The page's files: its own, the web runtime's, and of the bundle what the page reads."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.export.bundle import BLOCKLIST, INDEX, PERSONAL, PRIVACY, TOKENIZER, Bundle
from pfl_lm.export.formats import ExportedFile, Runner, format_of, open_file
from pfl_lm.files import folder_atomically
from pfl_lm.keyboard import runtime
from pfl_lm.runs import read_json

PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Site:
    """A keyboard of one bundle.

    Attributes:
        predict: entry of the graph that suggests.
        personal: entry of the graph that learns, or None.
        in_page: whether the browser computes, or this machine by ONNX Runtime.
        because: why not the browser, if it was not chosen.
    """

    bundle: Bundle
    predict: dict[str, Any]
    personal: dict[str, Any] | None
    in_page: bool
    because: str = ""

    @classmethod
    def of(cls, bundle: Bundle, precision: str | None = None, server: bool = False) -> Site:
        """Choose the graphs, and where they run.

        Raises:
            ValueError: the bundle has no ONNX graph of that precision, or neither the web runtime
                nor ONNX Runtime is here.
        """
        found = {entry["precision"]: entry for entry in bundle.graphs("predict", "onnx")}
        # In WebAssembly fp32 is the fastest: 3 ms a key, int8 10, int4 46.
        wanted = (precision,) if precision else ("fp32", "int8", *found)
        chosen = next((found[name] for name in wanted if name in found), None)
        if chosen is None:
            asked = f"{precision} " if precision else ""
            raise ValueError(
                f"the bundle has no {asked}predict graph in ONNX; export it with --formats onnx"
            )
        because = "" if server else runtime.missing()
        in_page = not server and not because
        if not in_page and (remedy := format_of("onnx").runtime_missing()):
            raise ValueError(f"{because or '--server'}; {remedy}")
        personal = next(iter(bundle.graphs("personal_step", "onnx")), None)
        return cls(bundle, chosen, personal, in_page, because)

    def files(self) -> dict[str, Path]:
        """Return every file that the page may ask for, by its place in the site."""
        found = {path.name: path for path in PAGE.iterdir() if path.is_file()}
        if self.in_page:
            found |= {f"runtime/{name}": runtime.FOLDER / name for name in runtime.FILES}
        wanted = [INDEX, BLOCKLIST, f"{TOKENIZER}/vocabulary.tsv", self.predict["path"]]
        if self.personal is not None:
            wanted += [self.personal["path"], PERSONAL]
        return found | {f"bundle/{name}": self.bundle.path(name) for name in wanted}

    def about(self) -> str:
        """Return ``site.json``."""
        return json.dumps(
            {
                "runtime": "web" if self.in_page else "server",
                "predict": self.predict["path"],
                "personal": self.personal["path"] if self.personal else None,
                "statements": read_json(self.bundle.path(PRIVACY))["statements"],
            }
        )

    def graphs(self) -> dict[str, Runner]:
        """Open the graphs here, for a page that does not run them itself."""
        entries = [self.predict] + ([self.personal] if self.personal else [])
        keys = ExportedFile.__dataclass_fields__
        return {
            entry["path"]: open_file(
                self.bundle.path(entry["path"]).parent,
                ExportedFile.from_dict({key: entry[key] for key in keys}),
            )
            for entry in entries
        }


def write_site(site: Site, output: Path) -> Path:
    """Write the page as a folder that any static host can serve; whole or not at all.

    Raises:
        ValueError: the web runtime is not here, or ``output`` exists.
    """
    if not site.in_page:
        raise ValueError(site.because or "--server computes here: such a page cannot be written")
    with folder_atomically(output) as folder:
        for name, path in site.files().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        (folder / "site.json").write_text(site.about(), encoding="utf-8")
    return output
