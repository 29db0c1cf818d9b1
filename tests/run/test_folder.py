from __future__ import annotations

import json
import math

import pytest

from pfl_lm.run.folder import RunFolder, RunLog, digest_of, read_json, write_json


@pytest.fixture
def folder(tmp_path):
    write_json(tmp_path / "manifest.json", {"run": "x"})
    return RunFolder.open(tmp_path)


def a_round(number, **about):
    return {"kind": "round", "round": number, "loss": 1.5, **about}


def an_evaluation(number):
    return {"kind": "evaluation", "round": number, "top3": 0.25}


def test_a_folder_without_a_manifest_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match=r"no manifest.json .*start again"):
            RunFolder.open(path)


def test_what_is_written_is_read(folder):
    log = RunLog(folder, 0)
    entries = [a_round(0, epsilon=None, loss=math.nan), a_round(1), an_evaluation(2)]
    for entry in entries:
        log.write(entry)
    log.close()
    assert str(folder.metrics()) == str(entries)  # nan is not equal to itself
    assert list(folder.tensorboard_path.iterdir())


def test_figures_are_on_the_disk_before_the_log_is_closed(folder):
    log = RunLog(folder, 0)
    log.write(a_round(0))
    assert folder.metrics() == [a_round(0)]
    log.close()


@pytest.mark.parametrize(
    ("start", "kept"),
    [
        (0, [an_evaluation(0)]),
        (1, [an_evaluation(0), a_round(0)]),
        (2, [an_evaluation(0), a_round(0), a_round(1), an_evaluation(2)]),
        (9, [an_evaluation(0), a_round(0), a_round(1), an_evaluation(2), a_round(2)]),
    ],
)
def test_a_resumed_log_forgets_the_rounds_that_are_repeated(folder, start, kept):
    log = RunLog(folder, 0)
    for entry in (an_evaluation(0), a_round(0), a_round(1), an_evaluation(2), a_round(2)):
        log.write(entry)
    log.close()
    with folder.metrics_path.open("a") as file:
        file.write('{"kind": "round", "rou')  # killed while it wrote
    again = RunLog(folder, start)
    assert folder.metrics() == kept
    again.write(a_round(start))
    again.close()
    assert folder.metrics() == [*kept, a_round(start)]


def test_a_damaged_line_is_named(folder):
    folder.metrics_path.write_text('{"kind": "round", "round": 0}\nnonsense\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl is damaged"):
        folder.metrics()


def test_no_metrics_are_no_lines(folder):
    assert folder.metrics() == []


def test_checkpoints_are_found_in_the_order_of_their_rounds(folder):
    (folder.path / "checkpoints").mkdir()
    for number in (999_999, 2, 1_000_000, 30):
        folder.checkpoint_path(number).write_text("")
    assert list(folder.checkpoints()) == [2, 30, 999_999, 1_000_000]
    folder.prune_checkpoints()
    assert list(folder.checkpoints()) == [999_999, 1_000_000]


def test_a_digest_does_not_depend_on_the_order_of_keys():
    content = {"a": [1, {"b": 2.5, "c": None}], "d": "ε"}
    turned = {"d": "ε", "a": [1, {"c": None, "b": 2.5}]}
    assert digest_of(content) == digest_of(turned) == digest_of(json.loads(json.dumps(content)))
    assert digest_of(content) != digest_of({**content, "d": "e"})


@pytest.mark.parametrize("content", [b"{", b"[1]", b"3", b"\xff", b""])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        read_json(path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "evaluation.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
