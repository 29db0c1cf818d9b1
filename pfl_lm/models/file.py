"""A model on disk: what it is, what it knows, and where its knowledge comes from."""

from __future__ import annotations

import errno
import pickle
import sys
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pfl_lm.files import check_zip, write_atomically
from pfl_lm.models.models import ModelSpec, Parameters, roles
from pfl_lm.recipes import from_plain

FORMAT = 1
_RENAMED = {"residual": "side_branch"}  # fields of a spec, as earlier files have them


@dataclass(frozen=True)
class Model:
    """A spec, its parameters, and their origin.

    Attributes:
        origin: ``kind`` (``public``, ``private`` or ``federated``), ``text``, ``tokenizer_digest``
            and, for a federated model, ``statements``.
    """

    spec: ModelSpec
    parameters: Parameters
    origin: dict[str, Any]


def save_model(path: Path, model: Model, new: bool = False) -> None:
    """Write a model file, whole or not at all; with ``new`` it must not exist."""
    content = {
        "format": FORMAT,
        "spec": asdict(model.spec),
        "parameters": model.parameters,
        "origin": model.origin,
    }
    with write_atomically(path, new=new) as temporary:
        write_tensors(temporary, _interned(content))


def load_model(path: Path) -> Model:
    """Read a model file; only tensors and plain values are accepted, never code.

    Raises:
        ValueError: no such file, not a model file, or its parameters do not fit its spec or are
            not finite.
    """
    content = load_tensors(path, "model file")
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: model file of another format than {FORMAT}; write it anew")
    if missing := {"spec", "parameters", "origin"} - set(content):
        raise ValueError(f"{path}: the model file has no {', '.join(sorted(missing))}")
    fields = {_RENAMED.get(name, name): value for name, value in content["spec"].items()}
    spec = from_plain(ModelSpec, fields, path)
    parameters = content["parameters"]
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    if shapes != {name: role.shape for name, role in roles(spec).items()}:
        raise ValueError(f"{path}: the parameters are not those of the model it describes")
    if broken := [name for name, value in parameters.items() if not _is_finite(value)]:
        raise ValueError(
            f"{path}: {', '.join(broken)} holds numbers that are not finite, as training leaves "
            "them that diverged; train it again at a lower rate"
        )
    return Model(spec, parameters, content["origin"])


_DAMAGE = (  # what zipfile and torch raise over a file that is none of theirs, or a damaged one
    *(zipfile.BadZipFile, EOFError, OSError, zlib.error, NotImplementedError),
    *(pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, AttributeError),
    *(IndexError, OverflowError, MemoryError, RecursionError),
)


def load_tensors(path: Path, what: str) -> dict[str, Any]:
    """Read a dict that ``torch.save`` wrote, without executing anything in it."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such {what}")
    unreadable = f"{path} is no readable {what}; it may be cut off or damaged, bring another copy"
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(archive, path, expansion=1)  # torch stores, and would unpack a bomb
            damaged = archive.testzip()  # torch itself checks no checksum
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"{unreadable} ({why})") from error
    if damaged is not None:
        raise ValueError(unreadable)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no {what}")
    return content


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write what :func:`load_tensors` reads.

    Raises:
        OSError: it could not be written; torch itself says RuntimeError where a disk is full.
    """
    try:
        torch.save(content, path)
    except RuntimeError as error:
        reason = "it could not be written whole; is there room on the disk?"
        raise OSError(errno.ENOSPC, reason, str(path)) from error


def _is_finite(value: torch.Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _interned(value: Any) -> Any:
    """Make equal strings one object: a pickle shows it, and equal models shall be equal bytes."""
    if isinstance(value, dict):
        return {_interned(key): _interned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_interned(item) for item in value)
    return sys.intern(value) if type(value) is str else value
