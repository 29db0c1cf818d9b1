"""The checkpoint of central training: one file beside the model that is to be written.

It holds the number of steps taken, the parameters, Adam's state, and a digest of the recipe and of
what the recipe names. Training goes on from it to the byte. It is erased once the model is written;
a training that is killed between the two goes on too, and ends with the model that lies there.
"""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pfl_lm.files import sha256_of, sweep, write_atomically
from pfl_lm.models.file import Model, load_model, load_tensors, save_model, write_tensors
from pfl_lm.run.folder import digest_of
from pfl_lm.run.pretrain_recipe import Pretraining

SECONDS = 60.0  # between checkpoints


@dataclass
class PretrainCheckpoint:
    """Where a training keeps how far it is.

    Attributes:
        path: the file.
        resume: go on from the file; else there must be none.
        seconds: least time between two checkpoints.
        mixture: digest of what chooses the text; "" where all of it is read.
    """

    path: Path
    resume: bool = False
    seconds: float = SECONDS
    mixture: str = ""

    @classmethod
    def beside(cls, model: Path, resume: bool) -> PretrainCheckpoint:
        """Return the checkpoint of the training that writes ``model``.

        Raises:
            ValueError: an interrupted training left one and shall not go on, there is none, or the
                model exists and no interrupted training wrote it.
        """
        checkpoint = cls(model.with_name(f"{model.name}.checkpoint"), resume)
        if os.path.lexists(model) and not checkpoint.path.exists():
            raise ValueError(f"--output {model} exists already; remove it or choose another name")
        if checkpoint.path.exists() and not resume:
            raise ValueError(
                f"{checkpoint.path} is left of an interrupted training: go on with --resume, or "
                "remove it"
            )
        if resume and not checkpoint.path.exists():
            raise ValueError(f"{checkpoint.path} is not there: nothing to resume")
        return checkpoint

    def load(self, recipe: Pretraining, adam: torch.optim.Adam, parameters: Any) -> int:
        """Take up parameters and Adam's state; return how many steps were taken.

        Raises:
            ValueError: the file is damaged, or is that of another recipe, text or tokenizer.
        """
        if not self.resume:
            return 0
        content = load_tensors(self.path, "checkpoint")
        if missing := {"step", "parameters", "adam", "recipe"} - set(content):
            raise ValueError(f"{self.path}: the checkpoint has no {', '.join(sorted(missing))}")
        if content["recipe"] != _digest(recipe, self.mixture):
            raise ValueError(
                f"{self.path} was begun with another recipe, text, tokenizer or mixture; resume "
                "with those, or remove it"
            )
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(content["parameters"][name])
        adam.load_state_dict(content["adam"])
        return int(content["step"])

    def saver(
        self, recipe: Pretraining, adam: torch.optim.Adam, parameters: Any
    ) -> Callable[[int, bool], None]:
        """Return a function of (steps taken, now) that saves: at once, or if it is time."""
        digest, last = _digest(recipe, self.mixture), time.monotonic()
        sweep(self.path.parent, glob.escape(self.path.name))

        def save(step: int, now: bool) -> None:
            nonlocal last
            if not now and time.monotonic() - last < self.seconds:
                return
            content = {
                "step": step,
                "parameters": {name: value.detach() for name, value in parameters.items()},
                "adam": adam.state_dict(),
                "recipe": digest,
            }
            with write_atomically(self.path) as temporary:
                write_tensors(temporary, content)
            last = time.monotonic()

        return save

    def finish(self, path: Path, model: Model) -> None:
        """Write the model that the training ended with, and erase the checkpoint.

        Raises:
            ValueError: another model lies there; it stays, and so does the checkpoint.
        """
        if not os.path.lexists(path):
            save_model(path, model, new=True)
        elif not _are_same(load_model(path), model):
            raise ValueError(
                f"{path} is not the model that this training ends with: move it away and repeat "
                "the command with --resume"
            )
        self.path.unlink(missing_ok=True)


def _are_same(one: Model, other: Model) -> bool:
    if (one.spec, one.origin) != (other.spec, other.origin):
        return False
    return all(torch.equal(one.parameters[name], other.parameters[name]) for name in one.parameters)


def _digest(recipe: Pretraining, mixture: str) -> str:
    """Name a recipe and the content of the files that it names."""
    named = [recipe.tokenizer / "tokenizer.json", recipe.text / "population.json", recipe.start]
    named.append(recipe.trunk)
    files = [sha256_of(path) for path in named if path is not None]
    plain = {name: str(value) for name, value in asdict(recipe).items() if name != "description"}
    chosen = {"mixture": mixture} if mixture else {}
    return digest_of({"recipe": plain, "files": files, **chosen})
