"""Can devices train a model as a scenario states it? Asked before a round is paid for."""

from __future__ import annotations

from pfl_lm.devices.forward_only import require_layers
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.segmented import step_kind
from pfl_lm.models.models import ModelSpec, body_of


def require_trainable(spec: ModelSpec, training: LocalTraining) -> None:
    """Refuse a model that devices cannot train so, whatever their text.

    A device with little text would not notice that windows are too long for the model; the
    evaluation of the run would, after rounds that were paid for.

    Raises:
        ValueError: windows longer than the model's context, or a method or activations that the
            kind of model cannot have.
    """
    longest = body_of(spec).longest_window(spec)
    if longest is not None and training.window > longest:
        raise ValueError(
            f"training.window = {training.window} exceeds model.context = {longest}; lower the "
            "window, or raise the context"
        )
    if training.method == "backpropagation":
        step_kind(spec, training.activations)
    if training.method == "forward_only":
        require_layers(spec)
