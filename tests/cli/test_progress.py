"""What a person is told of the time that is left."""

from types import SimpleNamespace

from pfl_lm.cli import progress


def test_the_first_step_is_no_measure_of_the_others(monkeypatch, capsys):
    clock = iter([60.0, 61.0, 62.0, 63.0])  # a minute of loading, then a second a step
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    bar = progress.StepBar("training")
    for step in range(1, 5):
        bar.step_done(step, 4, 2.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("loss 2.000")[2] for line in lines] == [
        "", ", 0:02 left", ", 0:01 left", ", 0:00 left",
    ]  # fmt: skip
