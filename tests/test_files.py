from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from pfl_lm import files
from pfl_lm.files import (
    folder_atomically,
    inside,
    move_new,
    scratch_beside,
    sole_writer,
    sweep,
    write_atomically,
)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), write_atomically(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def full_disk():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("writing", [write_atomically, folder_atomically, scratch_beside])
def test_an_error_of_the_disk_names_what_was_to_be_written(tmp_path, writing):
    target = tmp_path / "out"
    with pytest.raises(OSError, match="No space") as met, writing(target):
        raise full_disk()
    assert (met.value.errno, met.value.filename) == (errno.ENOSPC, str(target))
    with pytest.raises(IsADirectoryError) as met, writing(target) as temporary:
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(temporary))
    assert met.value.filename == str(target)
    with pytest.raises(FileNotFoundError) as met, writing(target):
        (tmp_path / "another").read_bytes()
    assert met.value.filename == str(tmp_path / "another")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_of_a_file_is_named(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(IsADirectoryError) as met, write_atomically(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert met.value.filename == str(tmp_path / "a.txt")


@pytest.mark.parametrize("writing", [write_atomically, folder_atomically])
def test_a_folder_that_takes_no_files_is_told_by_the_name_of_the_file(
    tmp_path, monkeypatch, writing
):
    def refusing(dir, prefix):
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/{prefix}12345678")

    for make in ("mkstemp", "mkdtemp"):
        monkeypatch.setattr(files.tempfile, make, refusing)
    with pytest.raises(PermissionError) as met, writing(tmp_path / "out"):
        pass
    assert met.value.filename == str(tmp_path / "out")


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


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_another_process_made_meanwhile_stays(tmp_path, kind):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="out was made meanwhile"), folder_atomically(out):
        if kind == "folder":
            out.mkdir()
        (out / "theirs" if kind == "folder" else out).write_text("theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "theirs" if kind == "folder" else out).read_text() == "theirs"


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


_WRITES_A_FILE = """
import sys
from pathlib import Path
from pfl_lm import files
with getattr(files, sys.argv[2])(Path(sys.argv[1])) as temporary:
    if temporary is not None:
        temporary.write_text("half")
    print("half way", flush=True)
    sys.stdin.read()
"""


def busy(path, what="write_atomically") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WRITES_A_FILE, str(path), what]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half way\n"
    return process


def test_the_next_to_write_a_file_removes_what_a_killed_process_left_and_nothing_else(tmp_path):
    others = [".a.txt.20261201", ".a.txt.unfinished", ".b.txt.unfinished_abcdefgh", ".a.txt.swp"]
    for name in others:
        (tmp_path / name).write_text("someone's")
    with busy(tmp_path / "a.txt") as killed, busy(tmp_path / "a.txt") as living:
        killed.kill()
        killed.wait()
        assert len(os.listdir(tmp_path)) == len(others) + 2
        with write_atomically(tmp_path / "a.txt") as temporary:
            temporary.write_text("whole")
        assert len(os.listdir(tmp_path)) == len(others) + 2  # a.txt, and that of the living one
        living.stdin.close()
        living.wait()
    assert (tmp_path / "a.txt").read_text() == "half"
    assert set(os.listdir(tmp_path)) == {*others, "a.txt"}


def test_a_file_that_another_took_for_a_left_one_is_made_again(tmp_path, monkeypatch):
    real, made = files.tempfile.mkstemp, []

    def swept(**about):
        descriptor, name = real(**about)
        made.append(name)
        if len(made) == 1:
            os.unlink(name)  # before it is locked
        return descriptor, name

    monkeypatch.setattr(files.tempfile, "mkstemp", swept)
    with write_atomically(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert len(made) == 2
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_new_file_replaces_nothing(tmp_path):
    with (
        pytest.raises(ValueError, match=r"a\.txt was made meanwhile"),
        write_atomically(tmp_path / "a.txt", new=True),
    ):
        (tmp_path / "a.txt").write_text("theirs")
    assert (tmp_path / "a.txt").read_text() == "theirs"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_processes_do_not_write_one_file_and_a_killed_one_holds_nobody_up(tmp_path):
    with busy(tmp_path / "model.pt", "sole_writer") as killed:
        with pytest.raises(ValueError, match="another process is writing"):
            sole_writer(tmp_path / "model.pt").__enter__()
        killed.kill()
    assert len(os.listdir(tmp_path)) == 1
    with sole_writer(tmp_path / "model.pt"), sole_writer(tmp_path / "other.pt"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_that_its_holder_has_just_removed_is_made_again(tmp_path, monkeypatch):
    real, opened = os.open, []

    def removed(path, *about, **more):
        descriptor = real(path, *about, **more)
        if str(path).endswith(".lock"):
            opened.append(path)
            if len(opened) == 1:
                os.unlink(path)
        return descriptor

    monkeypatch.setattr(files.os, "open", removed)
    with sole_writer(tmp_path / "model.pt"):
        assert os.listdir(tmp_path) == [".model.pt.lock"]
    assert len(opened) == 2


@pytest.mark.parametrize("mark", [None, b"", b"pfl-lm writes"])
def test_a_scratch_folder_whose_process_was_killed_before_it_was_marked_is_removed(tmp_path, mark):
    (left := tmp_path / ".out.ab12cd34").mkdir()
    if mark is not None:
        (left / "unfinished").write_bytes(mark)
    with scratch_beside(tmp_path / "out"):
        assert not left.exists()


def test_a_scratch_folder_that_another_took_for_a_left_one_is_made_again(tmp_path, monkeypatch):
    real, made = files.tempfile.mkdtemp, []

    def swept(**about):
        made.append(real(**about))
        if len(made) == 1:
            os.rmdir(made[0])  # before it is marked
        return made[-1]

    monkeypatch.setattr(files.tempfile, "mkdtemp", swept)
    with folder_atomically(tmp_path / "out") as folder:
        (folder / "x").write_text("whole")
    assert len(made) == 2
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_kill_left_beside_a_whole_folder_is_removed_as_the_folder_is_refused(tmp_path):
    with writer(tmp_path / "out") as killed:
        killed.kill()
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"), folder_atomically(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("writing", [folder_atomically, partial(write_atomically, new=True)])
def test_what_could_not_be_made_to_last_is_not_there(tmp_path, monkeypatch, writing):
    real = os.fsync

    def failing(descriptor):
        if os.path.samestat(os.fstat(descriptor), os.stat(tmp_path)):
            raise full_disk()
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", failing)
    with pytest.raises(OSError, match="No space"), writing(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == []


def test_the_marker_is_the_last_that_is_removed_of_a_scratch_folder(tmp_path, monkeypatch):
    def killed(path, **about):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.shutil, "rmtree", killed)
        with scratch_beside(tmp_path / "out") as scratch:
            (scratch / "a").write_text("a user's text")
            (scratch / "whole").mkdir()
    assert (scratch / "unfinished").exists()
    with scratch_beside(tmp_path / "out"):
        assert not scratch.exists()


def test_a_signal_as_a_scratch_folder_is_removed_leaves_none(tmp_path, monkeypatch):
    real, called = os.listdir, []

    def signalled(path):
        called.append(path)
        if len(called) == 1:
            raise SystemExit(143)
        return real(path)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(files.os, "listdir", signalled)
        with scratch_beside(tmp_path / "out"):
            pass
    assert os.listdir(tmp_path) == []


def test_a_finished_file_never_replaces_another(tmp_path):
    for name in ("whole.zip", "out.zip"):
        (tmp_path / name).write_text(name)
    with pytest.raises(ValueError, match="was made meanwhile"):
        move_new(tmp_path / "whole.zip", tmp_path / "out.zip")
    assert (tmp_path / "out.zip").read_text() == "out.zip"


_WRITES = """
import sys
from pathlib import Path
from pfl_lm import files
from pfl_lm.files import folder_atomically
with folder_atomically(Path(sys.argv[1])) as folder:
    (folder / "spill").write_text("a user's text")
    print("half way", flush=True)
    sys.stdin.read()
"""


def writer(path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WRITES, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half way\n"
    return process


@pytest.mark.parametrize("name", ["out", "o[u]t.zip", "o*t"])
def test_the_next_to_write_a_folder_removes_what_a_killed_process_left_and_nothing_else(
    tmp_path, name
):
    kept = [f".{name}.original", f".{name}.unpacked_too", ".out.ab12cd34", ".other.ab12cd34"]
    for folder in kept:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "unfinished").write_text("someone's")
    (tmp_path / f".{name}.a_file_8").write_text("someone's")
    with writer(tmp_path / name) as killed, writer(tmp_path / name) as living:
        killed.kill()
        killed.wait()
        assert len(os.listdir(tmp_path)) == len({*kept, f".{name}.a_file_8"}) + 2
        with scratch_beside(tmp_path / name) as scratch:
            others = {*kept, f".{name}.a_file_8", scratch.name}
            assert len(left := set(os.listdir(tmp_path)) - others) == 1
            assert (tmp_path / left.pop() / "whole" / "spill").exists()
        living.stdin.close()
        living.wait()
    assert (tmp_path / name / "spill").read_text() == "a user's text"
    assert set(os.listdir(tmp_path)) == {*kept, f".{name}.a_file_8", name}


def test_a_link_to_a_leftover_of_another_folder_is_not_followed(tmp_path):
    with writer(tmp_path / "elsewhere") as killed:
        killed.send_signal(signal.SIGKILL)
    left = next(tmp_path.iterdir())
    (tmp_path / ".out.ab12cd34").symlink_to(left)
    with scratch_beside(tmp_path / "out"):
        assert (left / "whole" / "spill").exists()


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
