"""SIGTERM and a closed terminal end every verb as Ctrl-C does: nothing half-written is left."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pfl_lm.text.synthetic.population import synthetic_tokenizer

CODE = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may be under nohup
from pfl_lm.cli import main
from pfl_lm.text import population_write

def stop(*about):
    print("half way", flush=True)
    time.sleep(60)

population_write.StoreWriter.finish = stop
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_population_half_written_is_cleared_away(tmp_path, number):
    synthetic_tokenizer(500).save(tmp_path / "words")
    (tmp_path / "text.jsonl").write_text('{"user": "a", "text": "hi"}\n')
    build = ["population", "build", "text.jsonl", "--tokenizer", "words", "-o", "built"]
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *build],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half way\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.jsonl", "words"]


IGNORING = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a program
from pfl_lm.cli import main
from pfl_lm.interrupts import interruptible
from pfl_lm.text import population_write

finish = population_write.StoreWriter.finish

def stop(*arguments):
    with interruptible() as hold:
        hold()
        print("half way", flush=True)
        sys.stdin.readline()
    return finish(*arguments)

population_write.StoreWriter.finish = stop
main()
"""


def test_what_nohup_started_outlives_its_terminal(tmp_path):
    synthetic_tokenizer(500).save(tmp_path / "words")
    (tmp_path / "text.jsonl").write_text('{"user": "a", "text": "hi"}\n')
    build = ["population", "build", "text.jsonl", "--tokenizer", "words", "-o", "built"]
    process = subprocess.Popen(
        [sys.executable, "-c", IGNORING, *build, "--split", "1,0,0"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half way\n"
    process.send_signal(signal.SIGHUP)
    process.communicate("go on\n", timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "built").is_dir()
