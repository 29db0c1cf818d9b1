"""Other libraries' text by user into a population store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from pfl_lm.interop.hugging_face import messages
from pfl_lm.interop.lines import Line, build_from_lines
from pfl_lm.interop.tff import Worker
from pfl_lm.language.population_build import (
    BuildOptions,
    Input,
    Progress,
    build_population,
    user_digest,
)
from pfl_lm.language.tokenizer import Tokenizer

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
    _check(source, path)
    if source == "leaf":
        return build_population(leaf_inputs(Path(path or "")), tokenizer, destination, options)
    if source == "hf":
        lines = messages(path or "", options.user_field, options.text_field, part, cache)
        return build_from_lines(source, lines, tokenizer, destination, options, progress)
    with Worker(threads=1) as worker:
        lines = _tff_lines(worker, source, path, options, part, cache, mirror)
        return build_from_lines(source, lines, tokenizer, destination, options, progress)


def leaf_inputs(path: Path) -> list[Input]:
    """Return the LEAF files of a folder, or the one file.

    LEAF divides each user's samples, not the users; so `train` and `test` of LEAF are read
    together and the users are split by their digest.
    """
    if not path.is_dir():
        return [Input(path)]
    files = sorted(path.rglob("*.json"))
    if not files:
        raise ValueError(f"{path} holds no .json file of LEAF")
    return [Input(file) for file in files]


def _check(source: str, path: str | None) -> None:
    if source not in SOURCES:
        raise ValueError(f"--from {source}: expected one of {', '.join(SOURCES)}")
    downloaded = source in ("tff-stackoverflow", "tff-shakespeare")
    if downloaded and path is not None:
        raise ValueError(f"{source} is downloaded by its own loader and takes no path: {path}")
    if not downloaded and path is None:
        raise ValueError(f"{source} needs a path")
    if source in ("tff-sqlite", "tff-hdf5") and not Path(path or "").is_file():
        raise ValueError(f"{path}: no such file")


def _tff_lines(
    worker: Worker,
    source: str,
    path: str | None,
    options: BuildOptions,
    part: str | None,
    cache: Path | None,
    mirror: str | None,
) -> Iterator[Line]:
    """Yield what TFF's own code reads.

    StackOverflow's held-out users become validation and test users, half each. Its `test` part
    holds later messages of training users and is left out: a user belongs to one split.
    """
    asked: dict[str, Any] = {"source": source.removeprefix("tff-")}
    if path is not None:
        asked |= {"path": str(Path(path).resolve()), "text_field": options.text_field}
    if source == "tff-sqlite" and part is not None:
        asked["part"] = part
    if path is None:
        asked |= {"cache": None if cache is None else str(cache.resolve()), "mirror": mirror}
    for head, _ in worker.stream("clients", **asked):
        for user, text in zip(head["clients"], head["texts"], strict=True):
            split = None
            if source == "tff-stackoverflow":
                split = _stackoverflow_split(head["part"], user, options.split_key)
            yield Line(split, user, text)


def _stackoverflow_split(part: str, user: str, split_key: str) -> str:
    if part == "train":
        return "train"
    return "validation" if user_digest(user, split_key)[1] < 0.5 else "test"
