"""The page's files: its own, the web runtime's, and of the bundle what the page reads."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfl_lm.export.bundle import BLOCKLIST, INDEX, PRIVACY, TOKENIZER, Bundle
from pfl_lm.export.formats.registry import ExportedFile, Runner, format_of, open_file
from pfl_lm.files import folder_atomically
from pfl_lm.keyboard import runtime
from pfl_lm.models.own_words import OwnWordsRule
from pfl_lm.run.folder import read_json
from pfl_lm.text.tokenizer import FORMS_FILE, SUBWORD_FILE, VOCABULARY_FILE, Tokenizer
from pfl_lm.translations import FOLDER, languages

PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Site:
    """A keyboard of one bundle.

    Attributes:
        predict: entry of the graph that suggests.
        in_page: whether the browser computes, or this machine by ONNX Runtime.
        because: why not the browser, if it was not chosen.
        language: of what the page says; None: its reader's browser decides.
        written: the vocabulary's languages that the person writes, until they choose others;
            empty: all.
    """

    bundle: Bundle
    predict: dict[str, Any]
    in_page: bool
    because: str = ""
    language: str | None = None
    written: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        precision: str | None = None,
        server: bool = False,
        language: str | None = None,
        written: tuple[str, ...] = (),
    ) -> Site:
        """Choose the graph, and where it runs.

        Raises:
            ValueError: the bundle has no ONNX graph of that precision, its vocabulary lacks a
                language, or neither the web runtime nor ONNX Runtime is here.
        """
        entries = {entry["precision"]: entry for entry in bundle.graphs("predict", "onnx")}
        # In WebAssembly fp32 is the fastest: 3 ms a key, int8 10, int4 46.
        wanted = (precision,) if precision else ("fp32", "int8", *entries)
        chosen = next((entries[name] for name in wanted if name in entries), None)
        if chosen is None:
            stated = f"{precision} " if precision else ""
            raise ValueError(
                f"the bundle has no {stated}predict graph in ONNX; export it with --formats onnx"
            )
        because = "" if server else runtime.missing()
        in_page = not server and not because
        if not in_page and (remedy := format_of("onnx").runtime_missing()):
            raise ValueError(f"{because or '--server'}; {remedy}")
        if written:
            Tokenizer.open(bundle.path(TOKENIZER)).of_languages(written)  # refuses an unknown one
        return cls(bundle, chosen, in_page, because, language, written)

    def files(self) -> dict[str, Path]:
        """Return every file that the page may ask for, by its place in the site."""
        files = {path.name: path for path in PAGE.iterdir() if path.is_file()}
        files |= {f"languages/{code}.json": FOLDER / f"{code}.json" for code in languages()}
        if self.in_page:
            files |= {f"runtime/{name}": runtime.FOLDER / name for name in runtime.FILES}
        wanted = [INDEX, BLOCKLIST, f"{TOKENIZER}/{VOCABULARY_FILE}", self.predict["path"]]
        if self.bundle.index.vocabulary.get("written_forms"):
            wanted.append(f"{TOKENIZER}/{FORMS_FILE}")
        if self.bundle.path(spelling := f"{TOKENIZER}/{SUBWORD_FILE}").is_file():
            wanted.append(spelling)
        return files | {f"bundle/{name}": self.bundle.path(name) for name in wanted}

    def about(self) -> str:
        """Return ``site.json``."""
        return json.dumps(
            {
                "runtime": "web" if self.in_page else "server",
                "predict": self.predict["path"],
                "language": self.language,
                "languages": languages(),
                "written": self.written,
                "own_words": self.bundle.index.model.get("own_words", asdict(OwnWordsRule())),
                "statements": read_json(self.bundle.path(PRIVACY))["statements"],
            }
        )

    def graphs(self) -> dict[str, Runner]:
        """Open the graph here, for a page that does not run it itself, by its path."""
        keys = ExportedFile.__dataclass_fields__
        exported = ExportedFile.from_dict({key: self.predict[key] for key in keys})
        path = self.predict["path"]
        return {path: open_file(self.bundle.path(path).parent, exported)}


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
