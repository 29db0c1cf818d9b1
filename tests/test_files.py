from __future__ import annotations

import pytest

from pfl_lm.files import folder_atomically, inside, sweep, write_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), write_atomically(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), folder_atomically(tmp_path / "out") as temporary:
        (temporary / "x").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_never_overwritten(tmp_path):
    with folder_atomically(tmp_path / "out") as temporary:
        (temporary / "x").write_text("whole")
    with pytest.raises(ValueError, match="exists already"), folder_atomically(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "x").read_text() == "whole"


def test_what_a_kill_left_is_swept_and_nothing_else(tmp_path):
    leaving = write_atomically(tmp_path / "round-000004.pt")
    killed = leaving.__enter__()  # never left: kill -9
    others = [".round-000004.pt.kept", ".round-000004.pt", "round-000004.pt.abcdefgh", ".notes"]
    for name in others:
        (tmp_path / name).write_text("someone's")
    sweep(tmp_path, "*.csv")
    assert killed.exists()
    sweep(tmp_path, "round-*.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/../b", "/a", "C:/a", "C:a", "a\\b", "\\\\host\\a", "a\0b", "link/a"]
)
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"lead|is no name|backslash"):
        inside(tmp_path / "folder", name)


def test_a_name_inside_is_its_path(tmp_path):
    assert inside(tmp_path, "graphs/a.b/c..d") == tmp_path / "graphs/a.b/c..d"
