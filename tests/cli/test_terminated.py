"""SIGTERM ends every verb by an exception, as Ctrl-C does: nothing half-written is left."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pfl_lm.text.synthetic.population import synthetic_tokenizer

CODE = """
import sys, time
from pfl_lm.cli import main
from pfl_lm.text import population_write

def stop(*about):
    print("half way", flush=True)
    time.sleep(60)

population_write.StoreWriter.finish = stop
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
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
