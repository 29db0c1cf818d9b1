"""No verb listens where a stranger could call: every process of every verb is watched.

Keyboard and server alone listen, on the loopback address. The keyboard answers to its own names
and unpickles nothing (tests/export/keyboard/test_server.py); the server speaks TLS, knows its
devices by their keys, and reads Protocol Buffers (tests/network).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

import pfl_lm
import pfl_lm.demo
from pfl_lm.cli import app, main
from pfl_lm.export import build
from pfl_lm.export.cost import RuntimeCost
from pfl_lm.export.formats import registry as formats
from pfl_lm.network.participation_record import ParticipationRecord
from pfl_lm.text.synthetic.population import (
    SyntheticPopulation,
    synthetic_tokenizer,
    synthetic_words,
    write_public_store,
)

pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux's /proc"),
]

MODEL = """
[model]
kind = "cifg_lstm"
vocabulary_size = 300
embedding_dim = 8
hidden_dim = 8
"""
SCENARIO = f"""
policy = "{{policy}}"
rounds = 2
cohort = 8
clip_norm = 0.5
seed = 3
{{text}}
{MODEL}
[training]
learning_rate = 0.5
window = 8
max_tokens = 64
[evaluation]
every = 0
users = 3
final_users = 3
"""
PRETRAINING = f"""
tokenizer = "tokenizer"
text = "public"
text_is = "public"
batch_size = 8
window = 10
candidates = 50
{MODEL}
"""
WORD_LIST = """
locale = "en_US"
size = 10_000
[source]
kind = "word_list"
path = "words.tsv"
provenance = "invented for a test"
licence = "CC0-1.0"
"""
FLEET = """
description = "One kind of phone"
source = "invented for a test"
check_in = 2
over_selection = 1.0
time_out_minutes = 20
time_zones = [1.0]
[profiles.low]
share = 1.0
training_memory_mb = 62
gflops = 5.3
download_mbps = 14
upload_mbps = 1.8
unmetered = 0.4
idle_inside = 0.5
idle_outside = 0.12
failures = { download = 0, keys = 0, training = 0, upload = 0, answer = 0 }
"""


@dataclass(frozen=True)
class Listener:
    """A socket on which a process takes calls."""

    pid: int
    protocol: str
    address: str  # as a person writes it, without the port; a path for "unix"


class Watch:
    """Lists the listening sockets of this process and its descendants, as long as it is open."""

    def __init__(self) -> None:
        self.found: set[Listener] = set()
        self.looks = 0
        self._before = listeners()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            ended = self._ended.is_set()  # look once more after the end
            self.found |= listeners() - self._before
            self.looks += 1
            if ended:
                return
            time.sleep(0.03)


def listeners() -> set[Listener]:
    found: set[Listener] = set()
    listed: dict[str, list[tuple[str, str, str]]] = {}  # by network: the kernel takes 10 ms to list
    for pid in family():
        with contextlib.suppress(OSError):  # the process has ended
            network = os.readlink(f"/proc/{pid}/ns/net")
            if network not in listed:
                listed[network] = list(sockets(pid))
            own = inodes(pid)
            found |= {
                Listener(pid, how, where) for how, inode, where in listed[network] if inode in own
            }
    return found


def family() -> set[int]:
    """Return this process and its descendants."""
    parents = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(place.name)] = int(
                    (place / "stat").read_text().rpartition(")")[2].split()[1]
                )
    found, size = {os.getpid()}, 0
    while len(found) > size:
        size = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found


def inodes(pid: int) -> set[str]:
    found = set()
    for name in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(name).removeprefix("socket:[").removesuffix("]"))
    return found


def sockets(pid: int) -> Iterator[tuple[str, str, str]]:
    """Yield protocol, inode and address of all sockets that listen where ``pid`` lives."""
    for name, state in {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}.items():
        path = Path(f"/proc/{pid}/net/{name}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if fields[3] == state:
                yield name, fields[9], readable(fields[1].partition(":")[0])
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) & 0x10000:  # it accepts connections
            yield "unix", fields[6], fields[7] if len(fields) > 7 else ""


def readable(address: str) -> str:
    raw = bytes.fromhex(address)
    words = [raw[i : i + 4][:: 1 if sys.byteorder == "big" else -1] for i in range(0, len(raw), 4)]
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, b"".join(words))


def is_private(found: Listener) -> bool:
    """Whether only this user's processes can reach a socket: its folder is closed to others."""
    if found.protocol != "unix" or not found.address.startswith("/"):
        return False
    with contextlib.suppress(FileNotFoundError):  # nobody can connect any more
        about = Path(found.address).parent.stat()
        return about.st_uid == os.getuid() and not stat.S_IMODE(about.st_mode) & 0o077
    return True


@pytest.mark.parametrize(
    ("family_of", "place", "seen"),
    [
        (socket.AF_INET, ("0.0.0.0", 0), ("tcp", "0.0.0.0")),
        (socket.AF_INET6, ("::", 0), ("tcp6", "::")),
        (socket.AF_INET6, ("::1", 0), ("tcp6", "::1")),
        (socket.AF_UNIX, "\0pfl-lm", ("unix", "@pfl-lm")),
    ],
)
def test_a_listening_child_is_seen(family_of, place, seen):
    code = f"""
import socket
server = socket.socket({int(family_of)})
server.bind({place!r})
server.listen()
print(flush=True)
input()
"""
    with Watch() as watch:
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        said = child.stdout.readline()
        looks = watch.looks
        while watch.looks < looks + 2:  # the second began after the child listened
            time.sleep(0.01)
        child.communicate(b"\n")
    if not said:
        pytest.skip("this machine has no such addresses")
    assert {(found.pid, found.protocol, found.address) for found in watch.found} == {
        (child.pid, *seen)
    }
    assert not any(map(is_private, watch.found))


@pytest.fixture(scope="module")
def at(tmp_path_factory, policy_file, quick, kept_format) -> Path:
    """A folder with what the verbs read: recipes, text, keys, a finished run and its bundle."""
    at = tmp_path_factory.mktemp("verbs")
    synthetic_tokenizer(300).save(at / "tokenizer")
    write_public_store(SyntheticPopulation({"train": 1, "public": 40}, 300, 40, 1), at / "public")
    words = synthetic_tokenizer(300).words[4:]
    rows = [{"user": f"u{i % 100}", "text": " ".join(words[i % 250 :][:8])} for i in range(400)]
    for part in (0, 1):
        lines = (json.dumps(row) + "\n" for row in rows[part::2])
        (at / f"text{part}.jsonl").write_text("".join(lines))
    (at / "public.txt").write_text(f"{words[9]} {words[8]}\n" * 90)
    listed = (f"{word}\t{20_000 - n}" for n, word in enumerate(synthetic_words(10_500)))
    (at / "words.tsv").write_text("\n".join(["word\tcount", *listed]))
    (at / "tokenizer.toml").write_text(WORD_LIST)
    (at / "list.tsv").write_text("word\tcount\nrakudo\t9\nnobody\t8\n")
    (at / "ask.toml").write_text(QUESTION)
    (at / "pretrain.toml").write_text(PRETRAINING)
    (at / "policies").mkdir()
    policy = at / "policies" / "policy.toml"
    policy.write_text(policy_file().read_text())
    store = 'tokenizer = "tokenizer"\n[population]\nkind = "store"\npath = "people"'
    (at / "scenario.toml").write_text(SCENARIO.format(policy=policy, text=store))
    invented = '[population]\nkind = "synthetic"\nusers = {}\ntokens_per_user = 40'
    for name, users in {"demo": 100, "served": 8}.items():
        scenario = SCENARIO.format(policy=policy, text=invented.format(users))
        (at / f"{name}.toml").write_text(scenario)
    unprotected = scenario.replace(f'policy = "{policy}"', "")
    (at / "served.toml").write_text(unprotected)
    (at / "fleet.toml").write_text(FLEET)
    ParticipationRecord(at / "record.sqlite", first_install=True)
    client = at / "client"
    client.write_text(f"#!/bin/sh\nexec {sys.executable} -m pfl_lm protocol answer\n")
    client.chmod(0o700)
    return at


def convert(graph, precision, path):
    content = f"{graph.name} {precision} {id(graph)}".encode() * 40
    GRAPHS[content] = graph
    path.write_bytes(content)
    return ["kept in memory"]


GRAPHS: dict[bytes, object] = {}  # by the content of their files


@dataclass(frozen=True)
class Kept(formats.Format):
    """A format that needs nothing installed: its files name graphs of this process."""

    def module(self):
        return SimpleNamespace(convert=convert, open=lambda path, *about: GRAPHS[path.read_bytes()])


@pytest.fixture(scope="module")
def kept_format():
    """Let ``onnx`` be such a format, where its packages are not installed."""
    known = formats.FORMATS["onnx"]
    fields = {name: getattr(known, name) for name in known.__dataclass_fields__}
    with pytest.MonkeyPatch.context() as patch:
        if known.runtime_missing():
            kept = Kept(**fields | {"converter": (), "runtime": (), "distributions": ()})
            patch.setitem(formats.FORMATS, "onnx", kept)
            patch.setattr(
                build, "measure_cost", lambda *about: RuntimeCost(0.5, 0.9, 0.4, 1 << 20, 3.0)
            )
        yield


def verb(at: Path, line: str) -> None:
    """Run one command line in this process; {at} is the folder of inputs."""
    words = [word.format(at=at) for word in line.split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pfl-lm", *words])
        patch.chdir(at)
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    assert status == 0, line


QUESTION = """
unit = "user"
neighboring = "zero_out"
epsilon = 8.0
delta = 1e-3
population = 75
report_goal = 75
rounds = 1
participation = { kind = "rotation", min_separation = 1 }
noise = { at = "device", kind = "skellam", min_dim = 64 }
"""
NOISE = "--sampling none --rounds 2 --delta 1e-7 --adjacency zero_out"

# What runs each verb once, in this order: later ones read what earlier ones wrote. Those without a
# line have a test of their own below.
LINES: dict[tuple[str, ...], str | None] = {
    ("recipes",): "en_30k",
    ("new",): "{at}/project --template chat",
    ("explain",): "scenario training",
    ("schema",): "policy",
    ("prepare",): "{at}/text0.jsonl {at}/text1.jsonl --public {at}/public.txt -o {at}/prepared",
    ("tokenizer", "build"): "tokenizer.toml -o {at}/words",
    ("tokenizer", "describe"): "{at}/words",
    ("population", "build"): "{at}/text0.jsonl {at}/text1.jsonl --tokenizer {at}/tokenizer "
    "-o {at}/people --workers 2 --keep-unknown-words",
    ("population", "describe"): "{at}/people",
    ("population", "public-text"): "{at}/public.txt --tokenizer {at}/tokenizer -o {at}/public_text",
    ("population", "export"): "{at}/people --tokenizer {at}/tokenizer --to leaf -o {at}/leaf",
    ("population", "import"): "{at}/leaf --tokenizer {at}/tokenizer --from leaf -o {at}/again",
    ("words", "discover"): "{at}/people --tokenizer {at}/tokenizer --policy {at}/ask.toml "
    "-o {at}/found --candidates-from {at}/list.tsv",
    ("words", "serve"): None,
    ("mixture", "cluster"): "{at}/public_text --tokenizer {at}/tokenizer --clusters 2 "
    "-o {at}/clusters",
    ("mixture", "ask"): "{at}/people --clusters {at}/clusters --policy {at}/ask.toml "
    "-o {at}/votes --ledgers {at}/vote_ledgers",
    ("launch",): None,  # in tests/queries/test_launch.py
    ("grow",): None,  # in tests/cli/test_words.py
    ("pretrain",): "pretrain.toml -o {at}/start.pt",
    ("simulate",): "scenario.toml -o {at}/run --workers 2",
    ("sweep",): "demo.toml --set cohort=4,6 -o {at}/sweep",
    ("demo",): None,
    ("evaluate",): "{at}/run --tokenizer {at}/tokenizer --population {at}/people",
    ("report",): "{at}/run",
    ("suggest",): "{at}/run",
    ("watch",): None,  # in tests/report/test_watch.py
    ("compare",): "{at}/run {at}/run -o {at}/comparison.html",
    ("audit",): "{at}/run --scenario {at}/scenario.toml --rounds 2 --phrase-rounds 0",
    ("check",): "policies --write",
    ("privacy", "epsilon"): f"--noise-multiplier 1 {NOISE}",
    ("privacy", "population"): None,  # in tests/cli/test_privacy.py
    ("privacy", "noise"): f"--epsilon 1 {NOISE}",
    ("privacy", "plan"): "--population 5000 --epsilon 2 --rounds 20",
    ("device", "cost"): "demo.toml --fleet fleet.toml --measure",
    ("export", "run"): "{at}/run --tokenizer {at}/tokenizer --population {at}/people "
    "-o {at}/bundle --formats onnx --precisions fp32 --positions 50 "
    "--no-train --least-agreement 0",
    ("export", "verify"): "{at}/bundle",
    ("keyboard",): None,
    ("enrol",): "-o {at}/keys --devices 8",
    ("device", "link"): "{at}/keys/devices/00000.json --page http://127.0.0.1:1/x/ "
    "--ca {at}/keys/server/tls.pem",
    ("serve",): None,
    ("device", "run"): None,
    ("device", "record"): "{at}/record.sqlite",
    ("protocol", "vectors"): "-o {at}/vectors",
    ("protocol", "verify"): "{at}/client --kind graph",  # which runs `protocol answer`
    ("protocol", "answer"): None,
    ("protocol", "device"): "",
}


def leaves(command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    children = getattr(command, "commands", {})
    if not children:
        yield path
    for name, child in children.items():
        yield from leaves(child, (*path, name))


def test_every_verb_is_watched():
    """A new verb needs a line above."""
    assert set(LINES) == set(leaves(typer.main.get_command(app)))


@pytest.mark.parametrize("name", [name for name in LINES if LINES[name] is not None], ids=" ".join)
def test_no_verb_listens(at, name):
    with Watch() as watch:
        verb(at, f"{' '.join(name)} {LINES[name]}")
    if name == ("device", "cost"):  # multiprocessing's fork server, in a folder of this user's
        assert all(map(is_private, watch.found))
    else:
        assert watch.found == set()


def test_the_demo_listens_nowhere(at, monkeypatch):
    """With two processes, as on every machine of two processors."""
    monkeypatch.setattr(pfl_lm.demo, "RECIPE", at / "demo.toml")
    with Watch() as watch:
        verb(at, "demo -o {at}/demo --workers 2")
    assert watch.found == set()


def test_the_keyboard_listens_on_the_loopback_address_alone(at):
    def stop() -> None:
        while not watch.found:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with Watch() as watch:
        threading.Thread(target=stop, daemon=True).start()
        verb(at, "keyboard {at}/bundle --port 0 --no-browser --server")
    assert on_this_machine(watch) == {(os.getpid(), "127.0.0.1")}


ASKED = "--tokenizer {at}/tokenizer --policy {at}/ask.toml"
SERVED = {
    "training": ("serve served.toml -o {at}/served", "--trial {at}/served.toml"),
    "a question": (
        f"words serve -o {{at}}/asked {ASKED} --candidates-from {{at}}/list.tsv",
        f"--trial {{at}}/people {ASKED}",
    ),
}


@pytest.mark.parametrize(("server", "plays"), SERVED.values(), ids=SERVED)
def test_the_server_listens_where_it_is_told_and_a_device_nowhere(at, server, plays):
    pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    keys = [str(at / f"keys/devices/{number:05d}.json") for number in range(8)]
    device = [sys.executable, "-m", "pfl_lm", "device", "run", *keys, "--server", place]
    device += ["--ca", str(at / "keys/server/tls.pem"), *plays.format(at=at).split()]
    with Watch() as watch, subprocess.Popen(device, cwd=Path(pfl_lm.__file__).parents[1]) as run:
        verb(at, f"{server} --keys {{at}}/keys --listen {place} --trial")
        assert run.wait(timeout=120) == 0
    assert on_this_machine(watch) == {(os.getpid(), "127.0.0.1")}


def on_this_machine(watch: Watch) -> set[tuple[int, str]]:
    """Process and address of all that was found; gRPC holds IPv4 in a socket of IPv6."""
    return {(found.pid, found.address.removeprefix("::ffff:")) for found in watch.found}
