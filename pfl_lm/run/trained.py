"""What a run has trained so far: its model, or the newest checkpoint of one that has not ended."""

from __future__ import annotations

from pathlib import Path

from pfl_lm.models.file import Model, load_model
from pfl_lm.models.spec import ModelSpec
from pfl_lm.recipes import from_plain
from pfl_lm.run.checkpoints import newest_checkpoint
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.manifest_file import Manifest


def load_trained(run: Path) -> tuple[Model, Manifest]:
    """Return the model of a run, and the run's manifest.

    Raises:
        ValueError: no run, or one that has neither ended nor saved a checkpoint.
    """
    folder = RunFolder.open(run)
    manifest = Manifest.read(folder)
    if folder.model_path.is_file():
        return load_model(folder.model_path), manifest
    state, _ = newest_checkpoint(folder)
    origin = {"tokenizer_digest": manifest.tokenizer.digest}
    spec = from_plain(ModelSpec, manifest.scenario.model, manifest.path)
    return Model(spec, state.averaged(), origin), manifest
