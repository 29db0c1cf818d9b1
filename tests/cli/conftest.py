"""What tests of the command line share."""

from __future__ import annotations

import signal
import sys

import pytest

from pfl_lm.cli import main


@pytest.fixture
def pfl_lm(monkeypatch, capsys):
    """A function that runs a verb and returns exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pfl-lm", *map(str, arguments)])
        status, answers = 0, signal.getsignal(signal.SIGINT)
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
        finally:
            signal.signal(signal.SIGINT, answers)
        written = capsys.readouterr()
        return status, written.out, written.err

    return run
