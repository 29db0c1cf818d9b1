"""A bundle: everything that a phone needs, as one folder or one zip file, and its index.

    bundle.json        the index: every file's SHA-256 and bytes, every graph's inputs and outputs
    privacy.json       what is guaranteed, what is only simulated, and the head of the ledger
    MODEL_CARD.md      the same for a person
    testvectors.json   inputs and expected outputs, to be run on the phone; big ones in testvectors/
    tokenizer/         sentencepiece model, vocabulary with public frequencies, normalisation
    blocklist.txt      words that are never suggested
    graphs/            the graphs, one file (or package) for each format and precision
    ngram/             the model as an n-gram, if asked for: ARPA, AOSP dictionary
    weights.f32        the model's parameters, little-endian, for `train_step`
    provenance/        the run's manifest, and its ledger unless rounds were drawn by Poisson
                       sampling; an app need not carry them

The index names every other file and its own digest, so that nothing can be added, taken away or
exchanged unseen. Against an attacker who rewrites the index too, only the run itself helps, kept
elsewhere: ``pfl-lm export verify --run`` compares its model with weights and graphs.
"""

from __future__ import annotations

import errno
import lzma
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from pfl_lm.export.index_schema import check_types
from pfl_lm.files import check_zip, inside, leads_out, sha256_of, write_atomically
from pfl_lm.run.folder import digest_of, read_json, write_json

SCHEMA = 2
INDEX, PRIVACY, CARD, VECTORS = "bundle.json", "privacy.json", "MODEL_CARD.md", "testvectors.json"
BLOCKLIST, WEIGHTS, TOKENIZER, GRAPHS = "blocklist.txt", "weights.f32", "tokenizer", "graphs"
MANIFEST, LEDGER = "provenance/manifest.json", "provenance/ledger.jsonl"
VECTOR_FILES, PERSONAL = "testvectors", "personal.f32"
_EXPANSION = 200.0  # times its size that a zip may unpack to; text and zeros shrink by most


_DAMAGE = (  # what ``zipfile`` raises over bytes that are no archive, or one that it cannot read
    *(zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, struct.error),
    *(RuntimeError, ValueError, NotImplementedError),
)


# What a table of plain values raises that has another shape than it should.
MISSHAPEN = (KeyError, TypeError, AttributeError, IndexError)


class BundleError(ValueError):
    """A bundle that cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Index:
    """What ``bundle.json`` states.

    Attributes:
        schema: version of this layout.
        name: the run's.
        pfl_lm: version that wrote it.
        run: ``manifest_digest``, ``ledger_head``, ``ledger_entries``, ``model_sha256``.
        model: the model's shape, and where ``weights.f32`` holds each parameter.
        vocabulary: its size, special ids, digest, normalisation, block list, locale.
        graphs: a graph file each: signature, quantisation, versions, parity and cost.
        limits: what the model is not good for, in numbers where there are some.
        files: SHA-256 and bytes by path.
        digest: SHA-256 of all the above.
    """

    schema: int
    name: str
    pfl_lm: str
    run: dict[str, Any]
    model: dict[str, Any]
    vocabulary: dict[str, Any]
    graphs: list[dict[str, Any]]
    limits: dict[str, Any]
    files: dict[str, dict[str, Any]]
    digest: str = ""


def counts_are_secret(manifest: dict[str, Any]) -> bool:
    """Tell whether a run drew Poisson cohorts, whose counts a reader must not learn."""
    participation = (manifest.get("policy") or {}).get("participation") or {}
    return bool(participation.get("kind") == "poisson")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose index is sound; ``check_files`` looks at the rest."""

    folder: Path
    index: Index

    def path(self, name: str) -> Path:
        """Return the path of a file that the bundle names.

        Raises:
            BundleError: the name leads out of the bundle.
        """
        try:
            return inside(self.folder, name)
        except (ValueError, TypeError, OSError) as error:
            raise BundleError(f"the bundle names a file outside itself: {error}") from error

    def graphs(self, graph: str, format: str | None = None) -> list[dict[str, Any]]:
        """Return the entries of a graph's files, of one format if stated."""
        return [
            entry
            for entry in self.index.graphs
            if entry["graph"] == graph and format in (None, entry["format"])
        ]


def write_index(folder: Path, stated: dict[str, Any]) -> Index:
    """Write ``bundle.json`` over all files that lie in ``folder``; the last step of an export."""
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256_of(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != INDEX
    }
    content = {"schema": SCHEMA, **stated, "files": files}
    index = Index(**content, digest=digest_of(content))
    write_json(folder / INDEX, asdict(index))
    return index


def read_index(folder: Path) -> Index:
    """Read ``bundle.json``.

    Raises:
        BundleError: absent, damaged, altered, or written by a version with another layout.
    """
    path = Path(folder) / INDEX
    if not path.is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {INDEX}; `pfl-lm export` writes one"
        )
    try:
        content = read_json(path)
    except ValueError as error:
        raise BundleError(f"{error}; bring another copy of the bundle") from error
    if content.get("schema") != SCHEMA:
        raise BundleError(
            f"{path} has schema {content.get('schema')!r}, this version reads {SCHEMA}: "
            "export the run again with this version"
        )
    if problem := _misshapen(content):
        raise BundleError(f"{path} is damaged: {problem}; bring another copy of the bundle")
    stated = content.pop("digest")
    if digest_of(content) != stated:
        raise BundleError(f"{path} was altered after it was written: its digest does not fit")
    return Index(**content, digest=stated)


def _misshapen(content: dict[str, Any]) -> str:
    """Say which key of an index is absent, unknown or of another type, or nothing."""
    kinds = {"schema": int, "name": str, "pfl_lm": str, "graphs": list, "digest": str}
    names = [field.name for field in fields(Index)]
    for name in names:
        if name not in content:
            return f"{name!r} is missing"
        if not isinstance(content[name], kinds.get(name, dict)):
            return f"{name!r} is of another type"
    if unknown := set(content) - set(names):
        return f"{min(unknown)!r} is not a key of it"
    try:
        check_types(content)
    except ValueError as error:
        return str(error)
    needed = ("path", "name", "graph", "format", "precision", "signature", "bytes")
    for place, entry in enumerate(content["graphs"]):
        if not isinstance(entry, dict) or any(name not in entry for name in needed):
            return f"'graphs' number {place} lacks one of {', '.join(needed)}"
        if PurePosixPath(str(entry["path"])).name != entry["name"]:
            return f"'graphs' number {place} has another name than its path ends with"
    named = [*content["files"], *(entry["path"] for entry in content["graphs"])]
    for name in named:
        if problem := "is no text" if not isinstance(name, str) else leads_out(name):
            return f"it names a file outside the bundle: {name!r} {problem}"
    sizes = {"sha256": str, "bytes": int}
    for name, stated in content["files"].items():
        if not isinstance(stated, dict) or any(
            not isinstance(stated.get(key), kind) for key, kind in sizes.items()
        ):
            return f"'files' states no {' and '.join(sizes)} of {name!r}"
    return _left_out(content)


def _left_out(content: dict[str, Any]) -> str:
    """Say which file that every such bundle has is absent or empty, or nothing.

    The ledger is missed where it is read: that of Poisson rounds stays with the run.
    """
    model, files = content["model"], content["files"]
    needed = [PRIVACY, CARD, VECTORS, MANIFEST]
    needed += [WEIGHTS] if model["weights"] is not None else []
    needed += [PERSONAL] if model.get("personal") is not None else []
    for name in needed:
        if not files.get(name, {"bytes": 0})["bytes"]:
            return f"'files' has no {name}, or an empty one, and every such bundle holds it"
    if BLOCKLIST not in files:
        return f"'files' has no {BLOCKLIST}, and every bundle holds it"
    for entry in content["graphs"]:
        if not any(name == entry["path"] or name.startswith(f"{entry['path']}/") for name in files):
            return f"'files' has no {entry['path']}, which 'graphs' names"
    return ""


def check_files(bundle: Bundle) -> list[str]:
    """Compare every file with the index; return a line for each that differs, none if all fit."""
    problems = [
        f"{path.relative_to(bundle.folder).as_posix()} is a symbolic link, and no file of a bundle"
        for path in sorted(bundle.folder.rglob("*"))
        if path.is_symlink()
    ]
    if problems:
        return problems
    for name, stated in bundle.index.files.items():
        path = bundle.path(name)
        if not path.is_file():
            problems.append(f"{name} is missing: the bundle is incomplete")
        elif (size := path.stat().st_size) != stated["bytes"]:
            cut = "truncated" if size < stated["bytes"] else "another file"
            problems.append(f"{name} has {size:,} bytes, not {stated['bytes']:,}: it is {cut}")
        elif sha256_of(path) != stated["sha256"]:
            problems.append(f"{name} is not the file that was exported: its SHA-256 differs")
    present = {
        path.relative_to(bundle.folder).as_posix()
        for path in bundle.folder.rglob("*")
        if path.is_file() and not _is_litter(path.relative_to(bundle.folder))
    }
    for name in sorted(present - set(bundle.index.files) - {INDEX}):
        problems.append(f"{name} is no part of this bundle: remove it, or bring another copy")
    return problems


def _is_litter(path: Path) -> bool:
    """Say whether a file is one that desktops leave in folders and zips."""
    named = path.name in (".DS_Store", "Thumbs.db", "desktop.ini") or path.name.startswith("._")
    return named or path.parts[0] == "__MACOSX"


@contextmanager
def opened(path: Path) -> Iterator[Bundle]:
    """Open a bundle's folder or zip; a zip is unpacked for as long as the block lasts.

    Raises:
        BundleError: there is none, the zip is cut off or damaged, or the index is not sound.
    """
    path = Path(path)
    if path.is_dir():
        yield Bundle(path, read_index(path))
        return
    if not path.is_file():
        raise BundleError(f"{path}: no such bundle")
    with tempfile.TemporaryDirectory(prefix="pfl_lm_bundle.") as scratch:
        folder = Path(scratch)
        unpack(path, folder)
        inside = [entry for entry in folder.iterdir() if not _is_litter(Path(entry.name))]
        if len(inside) == 1 and (inside[0] / INDEX).is_file():
            raise BundleError(
                f"{path}: the bundle is one folder too deep; zip what is in {inside[0].name}, not "
                "the folder itself"
            )
        try:
            index = read_index(folder)
        except BundleError as error:
            raise BundleError(str(error).replace(str(folder), str(path))) from error
        yield Bundle(folder, index)


def write_zip(folder: Path, path: Path) -> None:
    """Write a bundle's folder as one zip file, whole or not at all; equal folders, equal bytes."""
    with write_atomically(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, file.read_bytes(), compresslevel=6)


def unpack(path: Path, folder: Path) -> None:
    """Unpack a bundle's zip file.

    Raises:
        BundleError: it is no zip, cut off, damaged, names a place outside the folder, holds a
            link or a name twice, or would unpack to far more than its own size.
    """
    advice = "bring another copy of the bundle"
    try:
        with zipfile.ZipFile(path) as archive:
            try:
                check_zip(archive, path, _EXPANSION)
            except ValueError as error:
                raise BundleError(f"{path} {error}; {advice}") from error
            archive.extractall(folder)
    except BundleError:
        raise
    except _DAMAGE as error:
        raise BundleError(f"{path} is cut off or damaged ({error}); {advice}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the beginning, which a damaged zip names
            raise
        raise BundleError(f"{path} is cut off or damaged ({error}); {advice}") from error


def read_vectors(bundle: Bundle) -> dict[str, Any]:
    """Read ``testvectors.json``."""
    return read_json(bundle.path(VECTORS))
