"""One round of federated averaging as TFF writes it (inside the worker; imports TFF, not pfl_lm).

A reader who knows TFF finds nothing new here; `examples/fedavg_beside_tff.py` runs the same round
in pfl_lm and compares.

Legend: V words, D width of a row, H cells, P output width, B windows of a batch, T words of a
window, n windows of a client.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import runtime
import tensorflow as tf
import tensorflow_federated as tff

# The Keras model's variables, in Keras's order, by their names in pfl_lm.
VARIABLES = (
    "embedding",  # (V, D)
    "layer0.input",  # (D, 4H): gates input, forget, cell, output in both libraries
    "layer0.recurrent",  # (H, 4H)
    "layer0.input_bias",  # (4H,)
    "projection",  # (H, P)
    "projection_bias",  # (P,)
    "output",  # (P, V)
    "output_bias",  # (V,)
)


def one_round(
    arrays: dict[str, np.ndarray], clients: int, batch_size: int, learning_rate: float
) -> dict[str, np.ndarray]:
    """Train one round on ``clients`` clients and return the model's new variables by name.

    Args:
        arrays: the variables by name, and for each client k ``windows<k>`` int[n, T + 1], in the
            order in which it takes them.
    """
    runtime.use("native")
    start = [arrays[name] for name in VARIABLES]
    length = arrays["windows0"].shape[1] - 1
    spec = (tf.TensorSpec((None, length), tf.int32), tf.TensorSpec((None, length), tf.int32))

    def model_fn() -> Any:
        return tff.learning.models.from_keras_model(
            _keras_model(start, length),
            loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            input_spec=spec,
        )

    process = tff.learning.algorithms.build_unweighted_fed_avg(
        model_fn,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(learning_rate),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
    )
    weights = tff.learning.models.ModelWeights(trainable=start, non_trainable=[])
    state = process.set_model_weights(process.initialize(), weights)
    data = [_dataset(arrays[f"windows{k}"], batch_size) for k in range(clients)]
    state = process.next(state, data).state
    trained = process.get_model_weights(state).trainable
    return {name: np.asarray(value) for name, value in zip(VARIABLES, trained, strict=True)}


def _keras_model(variables: list[np.ndarray], length: int) -> Any:
    layers, shapes = tf.keras.layers, [variable.shape for variable in variables]
    words = layers.Input(shape=(length,), dtype=tf.int32)
    x = layers.Embedding(*shapes[0])(words)
    x = layers.LSTM(shapes[2][0], return_sequences=True)(x)
    x = layers.Dense(shapes[4][1])(x)
    model = tf.keras.Model(words, layers.Dense(shapes[6][1])(x))
    actual = [tuple(variable.shape) for variable in model.trainable_variables]
    if actual != shapes:
        raise ValueError(f"the model's variables are {actual}, the given ones {shapes}")
    return model


def _dataset(windows: np.ndarray, batch_size: int) -> Any:
    inputs, targets = windows[:, :-1].astype(np.int32), windows[:, 1:].astype(np.int32)
    return tf.data.Dataset.from_tensor_slices((inputs, targets)).batch(batch_size)
