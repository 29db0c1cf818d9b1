"""A model on disk: what it is, what it knows, and where its knowledge comes from."""

from __future__ import annotations

import pickle
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pfl_lm.files import write_atomically
from pfl_lm.language.models import LoraSpec, ModelSpec, Parameters, roles

FORMAT = 1


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


def save_model(path: Path, model: Model) -> None:
    """Write a model file, whole or not at all."""
    content = {
        "format": FORMAT,
        "spec": asdict(model.spec),
        "parameters": model.parameters,
        "origin": model.origin,
    }
    with write_atomically(path) as temporary:
        torch.save(_interned(content), temporary)


def load_model(path: Path) -> Model:
    """Read a model file; only tensors and plain values are accepted, never code.

    Raises:
        ValueError: no such file, not a model file, or its parameters do not fit its spec.
    """
    content = load_tensors(path, "model file")
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: model file of another format than {FORMAT}; write it anew")
    if missing := {"spec", "parameters", "origin"} - set(content):
        raise ValueError(f"{path}: the model file has no {', '.join(sorted(missing))}")
    try:
        spec = spec_from(content["spec"])
    except TypeError as error:
        raise ValueError(f"{path} describes a model of another version: {error}") from error
    parameters = content["parameters"]
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    if shapes != {name: role.shape for name, role in roles(spec).items()}:
        raise ValueError(f"{path}: the parameters are not those of the model it describes")
    return Model(spec, parameters, content["origin"])


def load_tensors(path: Path, what: str) -> dict[str, Any]:
    """Read a dict that ``torch.save`` wrote, without executing anything in it."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such {what}")
    unreadable = f"{path} is no readable {what}; it may be cut off or damaged, bring another copy"
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself checks no checksum
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(unreadable) from error
    if damaged is not None:
        raise ValueError(unreadable)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no {what}")
    return content


def spec_from(fields: dict[str, Any]) -> ModelSpec:
    """Rebuild a spec from ``dataclasses.asdict``."""
    lora = fields.get("lora")
    if lora is not None:
        lora = LoraSpec(**{**lora, "targets": tuple(lora["targets"])})
    return ModelSpec(**{**fields, "lora": lora})


def _interned(value: Any) -> Any:
    """Make equal strings one object: a pickle shows it, and equal models shall be equal bytes."""
    if isinstance(value, dict):
        return {_interned(key): _interned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_interned(item) for item in value)
    return sys.intern(value) if type(value) is str else value
