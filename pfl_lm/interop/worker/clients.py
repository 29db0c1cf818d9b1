"""TFF's client data, read by TFF's own code (inside the worker; imports TFF, not pfl_lm)."""

from __future__ import annotations

import contextlib
import sqlite3
import urllib.request
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tensorflow_federated as tff

_BATCH = 2000  # messages of one answer
_PUBLIC_HOST = "https://storage.googleapis.com/"  # where TFF's own loaders look

Message = tuple[str, str, str]  # part, client, text


def read(source: str, **options: Any) -> Iterator[dict[str, Any]]:
    """Yield ``{"part", "clients", "texts"}``, messages of one part in the order of the data.

    Args:
        source: ``stackoverflow``, ``shakespeare`` (downloaded by TFF's loaders, or found in
            ``cache``), ``sqlite`` or ``hdf5`` (a file in TFF's format).
        options: of the source, see ``_messages``.
    """
    batch: list[Message] = []
    for message in _messages(source, **options):
        if batch and (message[0] != batch[0][0] or len(batch) >= _BATCH):
            yield _columns(batch)
            batch = []
        batch.append(message)
    if batch:
        yield _columns(batch)


def _columns(batch: list[Message]) -> dict[str, Any]:
    return {"part": batch[0][0], "clients": [m[1] for m in batch], "texts": [m[2] for m in batch]}


def _messages(
    source: str,
    path: str = "",
    text_field: str = "",
    cache: str | None = None,
    mirror: str | None = None,
    part: str | None = None,
) -> Iterator[Message]:
    """Yield the messages of one source.

    Args:
        path: of the file (``sqlite``, ``hdf5``); part: its split, or None for all.
        cache: folder of downloads; mirror: a host that carries the same files.
    """
    datasets = tff.simulation.datasets
    if mirror is not None:
        _read_from(mirror)
    if source == "stackoverflow":
        train, held_out, _ = datasets.stackoverflow.load_data(cache)
        yield from _of(train, "train", "tokens")
        yield from _of(held_out, "heldout", "tokens")
    elif source == "shakespeare":
        for name, data in zip(
            ("train", "test"), datasets.shakespeare.load_data(cache), strict=True
        ):
            yield from _of(data, name, "snippets")
    elif source == "sqlite":
        _require_part(path, part)
        spec = {text_field: tf.TensorSpec((), tf.string)}
        data = datasets.load_and_parse_sql_client_data(path, spec, part)
        yield from _of(data, part or "all", text_field)
    elif source == "hdf5":
        yield from _hdf5(path, text_field)
    else:
        raise ValueError(f"no such source: {source!r}")


def _of(data: Any, part: str, text_field: str) -> Iterator[Message]:
    """Yield the texts of a ``tff.simulation.datasets.ClientData``."""
    for client in data.client_ids:
        # Not create_tf_dataset_for_client, which looks the id up in a list each time.
        for example in data.serializable_dataset_fn(tf.constant(client)).as_numpy_iterator():
            yield part, client, example[text_field].decode("utf-8", "replace")


def _require_part(path: str, part: str | None) -> None:
    """Name the parts of a file before TFF stumbles over one that is empty."""
    with contextlib.closing(sqlite3.connect(path)) as file:
        rows = file.execute("SELECT DISTINCT split_name FROM client_metadata ORDER BY 1")
        parts = [name for (name,) in rows]
    if not parts or part not in (None, *parts):
        raise ValueError(f"{path}: no clients of {part!r}; its parts: {', '.join(parts)}")


def _hdf5(path: str, text_field: str) -> Iterator[Message]:
    """Read the format of TFF's former HDF5ClientData: /examples/<client>/<field>, one row each."""
    import h5py

    with h5py.File(path, "r") as file:
        if "examples" not in file:
            raise ValueError(f"{path}: no group 'examples'; not a client data file of TFF")
        for client, fields in file["examples"].items():
            if text_field not in fields:
                known = ", ".join(fields)
                raise ValueError(f"{path}: client {client} has no field {text_field!r}: {known}")
            for text in fields[text_field][()]:
                yield "all", client, text.decode("utf-8", "replace")


def _read_from(mirror: str) -> None:
    """Let TFF's loaders fetch from another host than the public one."""
    fetch = urllib.request.urlopen

    def redirected(origin: Any, *rest: Any, **options: Any) -> Any:
        if isinstance(origin, str):
            origin = origin.replace(_PUBLIC_HOST, mirror.rstrip("/") + "/")
        return fetch(origin, *rest, **options)

    setattr(urllib.request, "urlopen", redirected)  # noqa: B010 - TFF looks it up there
