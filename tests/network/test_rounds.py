"""Whole runs over the network: the model that comes out, with everybody and with some gone."""

from __future__ import annotations

from pfl_lm.model_file import load_model


def test_a_run(trial, new_watcher):
    run = trial()
    run.start_devices()
    watcher = new_watcher()
    folder = run.serve(watcher)
    run.join()
    assert [entry["reports"] for entry in watcher.rounds] == [6, 6]
    print(watcher.rounds)
    load_model(folder.model_path)
