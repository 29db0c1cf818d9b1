"""Devices that train on a card, by the same code. No card is needed: see ``card``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfl_lm.devices.processor import CPU, Processor, open_processor
from pfl_lm.run.setup import open_run

ROOT = Path(__file__).resolve().parents[2]
CARD = Processor(torch.device("cuda"), 1024, 1 << 30, 1 << 30)


def test_a_card_trains_what_the_processor_trains() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.devices.card"], cwd=ROOT, capture_output=True, text=True,
        check=False, env=os.environ | {"PFL_LM_NATIVE": "0", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    settings = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(settings) == 23
    allowed = {"a run, {}": 5e-3}  # rounds by other bits: a step of the grid, here and there
    odd = [
        (name, found)
        for name, found in settings
        if not isinstance(found, float) or found > allowed.get(name, 1e-5)
    ]
    assert not odd, odd


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match='processor = "cuda": torch finds no graphics card'):
        open_processor("cuda")
    assert open_processor("cpu") is CPU


def test_methods_of_the_processor_alone_refuse_a_card(tiny_scenario) -> None:
    scenario = tiny_scenario()
    training = replace(scenario.training, method="forward_only")
    with pytest.raises(ValueError, match="trains on the processor alone"):
        open_run(replace(scenario, training=training), processor=CARD)
