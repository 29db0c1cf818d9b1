from pfl_lm.models.file import load_model


def test_smoke(trial, new_watcher, same_model):
    run = trial()
    run.start_devices()
    watcher = new_watcher()
    folder = run.serve(watcher, front_ends=2)
    run.join()
    assert [entry["reports"] for entry in watcher.rounds] == [6, 6]
    assert same_model(load_model(folder.model_path).parameters, run.reference([range(6)] * 2))
