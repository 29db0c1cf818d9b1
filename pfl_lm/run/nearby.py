"""What a run was made with, found again on this disk by its digest.

A manifest says which tokenizer and which population a run used, not where they lie.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pfl_lm.files import sha256_of
from pfl_lm.run.manifest_file import Manifest
from pfl_lm.text.population import PROFILE_FILE, SPLITS, users_digest
from pfl_lm.text.tokenizer import MANIFEST_FILE, Tokenizer

_DEEPEST = 3  # folders below a place that is searched


def find_tokenizer(manifest: Manifest, run: Path) -> Path | None:
    """Return the folder of a run's tokenizer, near the run or the current folder; None: none."""
    files = _near(run, MANIFEST_FILE)
    return next((f.parent for f in files if sha256_of(f) == manifest.tokenizer.digest), None)


def open_tokenizer(manifest: Manifest, run: Path, folder: Path | None = None) -> Tokenizer:
    """Open a run's vocabulary: from a folder, of its invented users, or found by its digest.

    Raises:
        ValueError: it is nowhere near, or the folder holds another vocabulary.
    """
    invented = manifest.scenario.population
    if folder is None and invented.kind == "synthetic":
        from pfl_lm.text.synthetic.population import synthetic_tokenizer

        tokenizer = synthetic_tokenizer(manifest.tokenizer.vocabulary_size, invented.language)
    elif (place := folder or find_tokenizer(manifest, run)) is not None:
        tokenizer = Tokenizer.open(place)
    else:
        raise ValueError(
            "--tokenizer is missing: no vocabulary with the run's digest lies near the run or in "
            "the current folder"
        )
    if tokenizer.digest != manifest.tokenizer.digest:
        raise ValueError(f"{run} was trained with another vocabulary than {folder}")
    return tokenizer


def find_population(manifest: Manifest, run: Path) -> Path | None:
    """Return the folder of a run's population: the same name, vocabulary and users in each split.

    The manifests of earlier versions only count the users.
    """
    stated = manifest.population
    for file in _near(run, PROFILE_FILE):
        try:
            profile = json.loads(file.read_text(encoding="utf-8"))
            users = {split: profile["splits"][split]["users"] for split in SPLITS}
            here = profile["name"], profile["tokenizer_digest"], users
            digest = users_digest(profile)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        alike = here == (stated.name, manifest.tokenizer.digest, stated.users)
        if alike and stated.digest in (None, digest):
            return file.parent
    return None


def _near(run: Path, name: str) -> Iterator[Path]:
    """Yield files of a name below the current folder and the folder that holds the runs' folder."""
    places = dict.fromkeys((Path.cwd(), run.resolve().parent, run.resolve().parent.parent))
    for place in places:
        for depth in range(_DEEPEST):
            yield from sorted(place.glob("/".join([*["*"] * depth, name])))
