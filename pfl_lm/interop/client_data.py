"""A population store as ``tff.simulation.datasets.ClientData``, for a program written in TFF.

For the environment of TFF: nothing here needs more of pfl_lm than the store itself, which needs
numpy alone (`pip install --no-deps pfl-lm` there).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.text.population import PAD_ID, PopulationStore


def client_data(folder: Path, split: str, window: int) -> Any:
    """Open one split of a store as client data.

    Clients are numbered ``"0"``, ``"1"``, … in the order of the store. An element is a pair
    (words int32[T], the words that follow them int32[T]); the windows are those of
    ``pfl_lm.text.population.windows``. Nothing is copied: a client's dataset reads the
    store's files, in operations that TFF can send to its executors.

    Args:
        folder: a folder that `pfl-lm population build` wrote.
        window: T, predicted words of an element.
    """
    import tensorflow as tf
    import tensorflow_federated as tff

    store = PopulationStore.open(folder)
    store.check(split)  # TensorFlow reads the files itself
    tokens_file, offsets_file = (
        str(Path(folder).resolve() / f"{split}.{part}") for part in ("tokens", "offsets")
    )
    dtype = np.dtype(store.profile["dtype"])
    stored = tf.as_dtype(dtype.newbyteorder("="))

    def dataset(client: Any) -> Any:
        user = tf.strings.to_number(client, tf.int64)
        ends = tf.io.decode_raw(_bytes(tf, offsets_file, user * 8, 16), tf.int64)
        start, length = ends[0] * dtype.itemsize, (ends[1] - ends[0]) * dtype.itemsize
        stream = tf.cast(tf.io.decode_raw(_bytes(tf, tokens_file, start, length), stored), tf.int32)
        count = -(-(tf.size(stream) - 1) // window)
        missing = count * window + 1 - tf.size(stream)
        padded = tf.pad(stream, [[0, missing]], constant_values=PAD_ID)
        words = tf.signal.frame(padded, window + 1, window)  # (n, T + 1)
        return tf.data.Dataset.from_tensor_slices((words[:, :-1], words[:, 1:]))

    clients = [str(user) for user in range(store.users(split))]
    return tff.simulation.datasets.ClientData.from_clients_and_tf_fn(clients, dataset)


def _bytes(tf: Any, path: str, start: Any, length: Any) -> Any:
    """Read ``length`` bytes of a file from ``start`` on: a file of one record, between two rims."""
    size = tf.constant(Path(path).stat().st_size, tf.int64)
    record = tf.data.FixedLengthRecordDataset(
        path, tf.cast(length, tf.int64), header_bytes=start, footer_bytes=size - start - length
    )
    return record.get_single_element()
