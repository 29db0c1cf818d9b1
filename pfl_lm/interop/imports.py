"""Other libraries' text by user into a population store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, get_args

from pfl_lm.interop.hugging_face import open_splits
from pfl_lm.interop.tff import Worker
from pfl_lm.text.population import SPLITS
from pfl_lm.text.population_build import (
    BuildOptions,
    Input,
    Progress,
    build_population,
)
from pfl_lm.text.records import Record, read_record, user_digest
from pfl_lm.text.tokenizer import Tokenizer

Source = Literal["tff-stackoverflow", "tff-shakespeare", "tff-sqlite", "tff-hdf5", "leaf", "hf"]
SOURCES: tuple[str, ...] = get_args(Source)


def import_population(
    source: Source,
    path: str | None,
    tokenizer: Tokenizer,
    destination: Path,
    options: BuildOptions,
    part: str | None = None,
    cache: Path | None = None,
    mirror: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build a population store from another library's data; return its profile.

    Args:
        source: ``tff-stackoverflow`` and ``tff-shakespeare`` are TFF's own data sets, downloaded;
            ``tff-sqlite`` and ``tff-hdf5`` files in TFF's formats; ``leaf`` a LEAF file or a
            folder of them; ``hf`` a Hugging Face data set: a folder of `save_to_disk`, or a name.
        path: of the file, folder or data set; TFF's own data sets take none.
        options: ``text_field`` is the feature, column or LEAF entry that holds the text.
        part: split of an SQLite file or of a Hugging Face data set; None: all of them.
        cache: folder where downloads are kept; mirror: a host to download from instead.

    Raises:
        ValueError: an argument that does not fit the source; see ``build_population``.
        TffMissing: a source of TFF, and its environment is not built.
    """
    _check(source, path, destination)
    if source == "leaf":
        inputs, notes = leaf_inputs(Path(path or "")), [_LEAF_NOTE]
        return build_population(inputs, tokenizer, destination, options, progress, notes)
    if source == "hf":
        inputs = open_splits(path or "", options.user_field, options.text_field, part, cache)
        notes = [_divided(item.path.name) for item in inputs if item.split is None]
        return build_population(
            inputs, tokenizer, destination, options, progress, notes if len(inputs) > 1 else ()
        )
    splits: dict[str, str] = {}
    note = ""
    if source == "tff-sqlite" and part is None:
        splits, note = sqlite_splits(Path(path or ""))
    with Worker(threads=1) as worker:
        messages = _tff_messages(worker, source, path, options, part, cache, mirror, splits)
        inputs = [Input(Path(path or source), records=messages)]
        return build_population(
            inputs, tokenizer, destination, options, progress, [note] * bool(note)
        )


def leaf_inputs(path: Path) -> list[Input]:
    """Return the LEAF files of a folder, or the one file.

    LEAF divides each user's samples, not the users; so `train` and `test` of LEAF are read
    together and the users are split by their digest. LEAF's scripts keep every step in a folder
    beside these two, with the same samples again: those are left out.
    """
    if not path.is_dir():
        return [Input(path)]
    files = sorted(
        file
        for file in path.rglob("*.json")
        if _LEAF_STEPS.isdisjoint(file.relative_to(path).parts[:-1])
    )
    if not files:
        raise ValueError(
            f"{path} holds no .json file of LEAF, besides the steps that its scripts keep "
            f"({', '.join(sorted(_LEAF_STEPS))}): name the folder of one step to read it"
        )
    return [Input(file) for file in files]


_LEAF_STEPS = {"all_data", "intermediate", "raw_data", "rem_user_data", "sampled_data"}
_LEAF_NOTE = (
    "users keep the split that a file of `population export` states; LEAF's own train and test "
    "divide each user's samples, so users of LEAF's files are split by their digest"
)


def _divided(name: str) -> str:
    return (
        f"{name}: users are divided among {', '.join(SPLITS)} by their digest, since the split's "
        "name is none of these, or users are in two splits of the data set"
    )


def sqlite_splits(path: Path) -> tuple[dict[str, str], str]:
    """Return the split of each client of an SQLite file, and what to say of them.

    A file whose clients each belong to one of train, validation and test, as `population export`
    writes it, keeps them there: people who were held out stay held out. Otherwise the clients
    are split by their digest.

    Raises:
        ValueError: the file has no table of clients.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as file:
            rows = file.execute("SELECT client_id, split_name FROM client_metadata").fetchall()
    except sqlite3.Error as error:
        raise ValueError(f"{path}: not a client data file of TFF: {error}") from error
    splits = {str(client): str(split) for client, split in rows}
    names = set(splits.values())
    if len(splits) == len(set(rows)) and names <= set(SPLITS) and len(names) > 1:
        return splits, "clients stay in the splits of the file"
    return {}, "clients are split by their digest: the file's splits are not kept"


def _check(source: str, path: str | None, destination: Path) -> None:
    if Path(destination).exists():
        raise ValueError(f"{destination} exists already; remove it or choose another destination")
    if source not in SOURCES:
        raise ValueError(f"--from {source}: expected one of {', '.join(SOURCES)}")
    downloaded = source in ("tff-stackoverflow", "tff-shakespeare")
    if downloaded and path is not None:
        raise ValueError(f"{source} is downloaded by its own loader and takes no path: {path}")
    if not downloaded and path is None:
        raise ValueError(f"{source} needs a path")
    if source in ("tff-sqlite", "tff-hdf5") and not Path(path or "").is_file():
        raise ValueError(f"{path}: no such file")


def _tff_messages(
    worker: Worker,
    source: str,
    path: str | None,
    options: BuildOptions,
    part: str | None,
    cache: Path | None,
    mirror: str | None,
    splits: dict[str, str],
) -> Iterator[Record]:
    """Yield what TFF's own code reads.

    StackOverflow's held-out users become validation and test users, half each. Its `test` part
    holds later messages of training users and is left out: a user belongs to one split.
    """
    request: dict[str, Any] = {"source": source.removeprefix("tff-")}
    if path is not None:
        request |= {"path": str(Path(path).resolve()), "text_field": options.text_field}
    if source == "tff-sqlite" and part is not None:
        request["part"] = part
    if path is None:
        request |= {"cache": None if cache is None else str(cache.resolve()), "mirror": mirror}
    name, number = str(path or source), 0
    for head, _ in worker.stream("clients", **request):
        for user, text in zip(head["clients"], head["texts"], strict=True):
            split = splits.get(user)
            if source == "tff-stackoverflow":
                split = _stackoverflow_split(head["part"], user, options.split_key)
            number += 1
            yield read_record(user, text, name, number, ("client", "text"), split)


def _stackoverflow_split(part: str, user: str, split_key: str) -> str:
    if part == "train":
        return "train"
    return "validation" if user_digest(user, split_key)[1] < 0.5 else "test"
