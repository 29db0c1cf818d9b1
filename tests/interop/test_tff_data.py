"""TFF's client data and our stores: files written by TFF's own code, and read by it."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections import defaultdict

import pytest

from pfl_lm.interop.exports import export_sqlite
from pfl_lm.interop.imports import import_population
from pfl_lm.text.population import SPLITS, PopulationStore, windows
from pfl_lm.text.population_build import BuildOptions
from pfl_lm.text.records import Message

# Writes, with TensorFlow's own encoders, what TFF's public data sets look like.
WRITE = """
import json, lzma, os, sqlite3, sys
import h5py, tensorflow as tf
folder, lines = sys.argv[1], json.load(open(sys.argv[2]))
def feature(value):
    if isinstance(value, int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))
def write(name, rows):
    path = os.path.join(folder, name)
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL, "
                     "serialized_example_proto BLOB NOT NULL)")
        file.execute("CREATE TABLE client_metadata (client_id TEXT NOT NULL, "
                     "split_name TEXT NOT NULL, num_examples INTEGER NOT NULL)")
        counts = {}
        for split, client, fields in rows:
            features = tf.train.Features(feature={k: feature(v) for k, v in fields.items()})
            example = tf.train.Example(features=features).SerializeToString()
            file.execute("INSERT INTO examples VALUES (?, ?, ?)", (split, client, example))
            counts[client, split] = counts.get((client, split), 0) + 1
        for (client, split), count in counts.items():
            file.execute("INSERT INTO client_metadata VALUES (?, ?, ?)", (client, split, count))
    public = os.path.join(folder, "tff-datasets-public")
    os.makedirs(public, exist_ok=True)
    with open(path, "rb") as plain, lzma.open(os.path.join(public, name + ".lzma"), "wb") as packed:
        packed.write(plain.read())
post = dict(creation_date="2018-01-02", score=3, tags="a|b", title="t", type="answer")
parts = ("train", "heldout", "test")
part = lambda user: parts[1] if int(user[4:]) % 4 == 0 else parts[0]
write("stackoverflow.sqlite",
      [(part(u), u, dict(post, tokens=t)) for u, t, _ in lines]
      + [("test", "user1", dict(post, tokens="later"))])
write("shakespeare.sqlite",
      [(("train", "test")[i % 3 == 0], u, dict(snippets=t)) for i, (u, t, _) in enumerate(lines)])
with h5py.File(os.path.join(folder, "clients.h5"), "w") as file:
    by_client = {}
    for u, t, _ in lines:
        by_client.setdefault(u, []).append(t)
    for u, texts in by_client.items():
        file.create_group("examples/" + u)["tokens"] = texts
"""

READ = """
import json, sys, tensorflow as tf, tensorflow_federated as tff
spec = {"tokens": tf.TensorSpec((), tf.string)}
found = {}
for split in ("train", "validation", "test"):
    data = tff.simulation.datasets.load_and_parse_sql_client_data(sys.argv[1], spec, split)
    for client in data.client_ids:
        examples = data.create_tf_dataset_for_client(client).as_numpy_iterator()
        found[split + "/" + client] = [example["tokens"].decode() for example in examples]
print("FOUND" + json.dumps(found))
"""

CLIENT_DATA = """
import json, os, sys
import numpy as np, tensorflow as tf, tensorflow_federated as tff
from pfl_lm.interop.client_data import client_data
data = client_data(sys.argv[1], "train", 5)
found = []
for client in data.client_ids:
    pairs = data.create_tf_dataset_for_client(client).as_numpy_iterator()
    found.append([[x.tolist(), y.tolist()] for x, y in pairs])
# The same inside TFF's executor, which receives ids and reads the files itself.
@tff.tensorflow.computation(tff.TensorType(np.str_))
def count(client):
    add = lambda n, pair: n + tf.cast(tf.math.count_nonzero(pair[1]), tf.int32)
    return data.serializable_dataset_fn(client).reduce(np.int32(0), add)
@tff.federated_computation(tff.FederatedType(np.str_, tff.CLIENTS))
def total(clients):
    return tff.federated_sum(tff.federated_map(count, clients))
predicted = int(total(list(data.client_ids)))
print("FOUND" + json.dumps([found, predicted]), flush=True)
import psutil
[child.kill() for child in psutil.Process().children(recursive=True)]
os._exit(0)
"""

KEEP = BuildOptions(keep_user_ids=True, text_field="tokens")


def found(output: str):
    return json.loads(output.split("FOUND")[-1])


@pytest.fixture(scope="module")
def files(in_tff, lines, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tff")
    (folder / "lines.json").write_text(json.dumps(lines))
    in_tff(WRITE, folder, folder / "lines.json")
    return folder


@pytest.fixture(scope="module")
def host(files):
    """A host on this machine with the files that TFF's public one has."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(files))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def expected(lines, tokenizer, order=lambda rows: rows) -> dict[str, list[int]]:
    streams: dict[str, list[int]] = defaultdict(list)
    for message in order(lines):
        streams[message.user] += [2, *tokenizer.encode(message.text), 3]
    return streams


@pytest.mark.parametrize("source", ["sqlite", "hdf5"])
def test_files_in_tffs_format_become_a_store(
    source, files, lines, tokenizer, streams, tff_python, tmp_path
):
    path = files / {"sqlite": "stackoverflow.sqlite", "hdf5": "clients.h5"}[source]
    import_population(f"tff-{source}", str(path), tokenizer, tmp_path / "store", KEEP)
    if source == "sqlite":  # all its parts, so also what `test` holds of a user
        lines = [*lines, Message("user1", "later")]
    assert streams(PopulationStore.open(tmp_path / "store")) == expected(lines, tokenizer)


def test_stackoverflow_is_downloaded_once_and_keeps_held_out_users_apart(
    files, host, lines, tokenizer, streams, tff_python, tmp_path
):
    for name, mirror in (("first", host), ("second", "http://127.0.0.1:9")):  # nobody listens
        import_population(
            "tff-stackoverflow", None, tokenizer, tmp_path / name, KEEP,
            cache=tmp_path / "cache", mirror=mirror,
        )  # fmt: skip
        store = PopulationStore.open(tmp_path / name)
        assert streams(store) == expected(lines, tokenizer)  # `test`, of known users, left out
        held_out = {line.user for line in lines if int(line.user[4:]) % 4 == 0}
        assert set(store.user_ids("train")) == {line.user for line in lines} - held_out


def test_a_part_that_nobody_has_is_named(files, tokenizer, tff_python, tmp_path):
    with pytest.raises(ValueError, match="no clients of 'dev'; its parts: heldout, test, train"):
        import_population(
            "tff-sqlite", str(files / "stackoverflow.sqlite"), tokenizer, tmp_path / "store", KEEP,
            part="dev",
        )  # fmt: skip


def test_shakespeare_is_downloaded_and_users_are_split_anew(
    host, lines, tokenizer, streams, tff_python, tmp_path
):
    import_population(
        "tff-shakespeare", None, tokenizer, tmp_path / "store", KEEP,
        cache=tmp_path / "cache", mirror=host,
    )  # fmt: skip
    train = [row for i, row in enumerate(lines) if i % 3]
    rest = [row for i, row in enumerate(lines) if i % 3 == 0]
    found = streams(PopulationStore.open(tmp_path / "store"))
    assert found == expected([*train, *rest], tokenizer)


def test_a_host_that_is_not_there_is_one_line(tokenizer, tff_python, tmp_path):
    with pytest.raises(ValueError, match="refused clients: URLError"):
        import_population(
            "tff-shakespeare", None, tokenizer, tmp_path / "store", KEEP,
            cache=tmp_path / "cache", mirror="http://127.0.0.1:9",
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_store_as_a_file_is_opened_by_tff(store, tokenizer, in_tff, tmp_path):
    export_sqlite(store, tokenizer, tmp_path / "clients.sqlite")
    read = found(in_tff(READ, tmp_path / "clients.sqlite"))
    again = {}
    for split in SPLITS:
        for user, name in enumerate(store.user_ids(split)):
            encoded = [tokenizer.encode(text) for text in read.pop(f"{split}/{name}")]
            again[name] = [token for ids in encoded for token in (2, *ids, 3)]
            assert again[name] == store.tokens(split, user).tolist()
    assert again
    assert not read


def test_a_store_as_client_data_has_the_same_windows(store, in_tff):
    read, predicted = found(in_tff(CLIENT_DATA, store.folder))
    assert len(read) == store.users("train")
    total = 0
    for user, pairs in enumerate(read):
        cut = windows(store.tokens("train", user), 5)
        assert [x + y[-1:] for x, y in pairs] == cut.tolist()
        total += int((cut[:, 1:] > 0).sum())
    assert predicted == total
