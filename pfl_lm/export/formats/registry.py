"""The four formats behind one interface: convert a graph, open what was written, run it.

Each format is a module of its own and an extra of the package; nothing of its toolchain is
imported before it is used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export.signature import Arrays, ExportGraph, Runner, Signature

NGRAM_FORMATS = ("arpa", "aosp")  # no graphs: ``export/ngram`` writes them, if asked for by name
PRECISIONS = ("fp32", "fp16", "int8", "int4")


@dataclass(frozen=True)
class ExportedFile:
    """A file in a phone's format and what is known of it.

    Attributes:
        name: of the file, or of the folder (Core ML).
        graph: ``predict``, ``train_step``, …
        bytes: of the file, or of all files in the folder.
        versions: of the toolchain that wrote it.
        notes: what a reader of the bundle must know.
    """

    name: str
    format: str
    graph: str
    precision: str
    signature: Signature
    bytes: int
    versions: dict[str, str]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; :meth:`from_dict` reads them back."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return fields | {"signature": self.signature.as_dict(), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ExportedFile:
        """Rebuild from :meth:`as_dict`."""
        signature, notes = Signature.from_dict(fields["signature"]), tuple(fields["notes"])
        return cls(**fields | {"signature": signature, "notes": notes})

    @classmethod
    def of_entry(cls, entry: dict[str, Any]) -> ExportedFile:
        """Rebuild from a bundle's entry, which says more than this."""
        return cls.from_dict({name: entry[name] for name in cls.__dataclass_fields__})

    def zeros(self) -> Arrays:
        """Return inputs that are all zeros, by name."""
        return {t.name: np.zeros(t.shape, t.dtype) for t in self.signature.inputs}


@dataclass(frozen=True)
class Format:
    """A phone's format.

    Attributes:
        name: also the name of the extra and of the module in this folder.
        suffix: of what is written.
        precisions: of ``predict``; ``train_step`` is fp32 everywhere.
        converter, runtime: packages that writing and running need, by import name.
        least_runtime: what the app must bring.
        lookup: the form of ``train_step`` that this runtime can take.
        runs: whether its runtime exists on this system; Core ML's does not outside Apple's, and
            its files are interpreted.
    """

    name: str
    suffix: str
    precisions: tuple[str, ...]
    converter: tuple[str, ...]
    runtime: tuple[str, ...]
    distributions: tuple[str, ...]
    least_runtime: str
    lookup: str
    runs: bool = True

    def missing(self) -> str:
        """Say how to install what converting needs; empty if it is all here."""
        return _missing(self, self.converter)

    def runtime_missing(self) -> str:
        """Say how to install what running needs; empty if it is all here."""
        return _missing(self, self.runtime)

    def versions(self) -> dict[str, str]:
        """Return the installed versions of the toolchain's packages."""
        return {name: importlib.metadata.version(name) for name in ("torch", *self.distributions)}

    def module(self) -> Any:
        """Import the format's module; raises ValueError naming the extra if that is not here."""
        return importlib.import_module(f"pfl_lm.export.formats.{self.name}")


FORMATS = {
    known.name: known
    for known in (
        Format(
            "onnx", ".onnx", ("fp32", "fp16", "int8", "int4"),
            ("onnx", "onnxscript"), ("onnxruntime",), ("onnx", "onnxscript", "onnxruntime"),
            "ONNX Runtime 1.22, Mobile or Web", "index",
        ),
        Format(
            "litert", ".tflite", ("fp32", "int8", "int4"),
            ("litert_torch", "ai_edge_quantizer"), ("ai_edge_litert",),
            ("litert-torch", "ai-edge-litert", "ai-edge-quantizer"),
            "LiteRT 2.1", "one_hot",
        ),
        Format(
            "executorch", ".pte", ("fp32", "int8", "int4"),
            ("executorch", "torchao"), ("executorch",), ("executorch", "torchao"),
            "ExecuTorch 1.4 with XNNPACK and the quantized kernels", "index",
        ),
        Format(
            "coreml", ".mlpackage", ("fp32", "fp16", "int8", "int4"),
            ("coremltools",), ("coremltools",), ("coremltools",),
            "iOS 17; iOS 18 for int4", "one_hot", runs=False,
        ),
    )
}  # fmt: skip


def format_of(name: str) -> Format:
    """Return a format by name; raises ValueError for an unknown one."""
    if name not in FORMATS:
        known = ", ".join((*FORMATS, *NGRAM_FORMATS))
        raise ValueError(f"format {name!r}: must be one of {known}")
    return FORMATS[name]


def convert(graph: ExportGraph, format: str, precision: str, folder: Path) -> ExportedFile:
    """Write a graph into ``folder`` as ``<graph>.<precision>.<suffix>``.

    Raises:
        ValueError: an unknown format, one whose extra is not installed, a precision that it does
            not have, or a graph that the precision does not fit; the message names the remedy.
    """
    known = format_of(format)
    if precision not in known.precisions:
        raise ValueError(f"precision {precision!r}: {format} has {', '.join(known.precisions)}")
    if precision != "fp32" and not graph.name.startswith("predict"):
        raise ValueError(f"{graph.name} computes gradients: it is exported in fp32 only")
    if remedy := known.missing():
        raise ValueError(remedy)
    path = Path(folder) / f"{graph.name}.{precision}{known.suffix}"
    with _hushed():
        notes: Sequence[str] = known.module().convert(graph, precision, path)
    return ExportedFile(
        path.name, format, graph.name, precision, graph.signature, size_of(path),
        known.versions(), tuple(notes),
    )  # fmt: skip


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep converters' progress bars and warnings about one another off the screen."""
    off = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(off)


def open_file(folder: Path, exported: ExportedFile, threads: int = 1) -> Runner:
    """Open a written file with its runtime (Core ML: with the interpreter).

    Raises:
        ValueError: the runtime is not installed, or it does not take the file.
    """
    known = format_of(exported.format)
    if remedy := known.runtime_missing():
        raise ValueError(remedy)
    path = Path(folder) / exported.name
    if not path.exists():
        raise ValueError(f"{path}: no such file; the bundle is not whole")
    runner: Runner = known.module().open(path, exported.signature, threads)
    return runner


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _missing(known: Format, packages: Sequence[str]) -> str:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if not absent:
        return ""
    return (
        f"{known.name} needs {', '.join(absent)}, not installed here: "
        f'pip install "pfl-lm[{known.name}]"'
    )
