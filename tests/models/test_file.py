from __future__ import annotations

import pickle
import zipfile
from dataclasses import replace

import pytest
import torch

from pfl_lm.models.file import FORMAT, Model, load_model, save_model, write_tensors
from pfl_lm.models.models import LoraSpec, ModelSpec, initialise
from pfl_lm.run.checkpoints import newest_checkpoint, save_checkpoint
from pfl_lm.run.folder import RunFolder
from pfl_lm.server.state import ServerState

SPEC = ModelSpec("cifg_lstm", vocabulary_size=50, embedding_dim=4, hidden_dim=4, lora=LoraSpec(2))


@pytest.fixture
def model():
    return Model(SPEC, initialise(SPEC, seed=1), {"kind": "public", "text": "t"})


@pytest.fixture
def path(model, tmp_path):
    save_model(tmp_path / "model.pt", model)
    return tmp_path / "model.pt"


def test_a_model_comes_back_as_it_was(model, path):
    found = load_model(path)
    assert (found.spec, found.origin) == (model.spec, model.origin)
    assert list(found.parameters) == list(model.parameters)
    assert all(torch.equal(found.parameters[n], v) for n, v in model.parameters.items())


def test_a_field_that_was_renamed_is_read_by_its_old_name(model, path):
    save_model(path, model)
    content = torch.load(path, weights_only=True)
    content["spec"]["residual"] = content["spec"].pop("side_branch")
    torch.save(content, path)
    assert load_model(path).spec == model.spec


def test_equal_models_are_equal_bytes(model, path, tmp_path):
    names = {"".join(list(n)): v.clone() for n, v in model.parameters.items()}
    again = tmp_path / "again" / "model.pt"
    save_model(again, replace(load_model(path), parameters=names))
    assert again.read_bytes() == path.read_bytes()


def test_every_kind_of_damage_is_refused(path):
    whole = path.read_bytes()
    cuts = [0, 1, 100, len(whole) // 2, len(whole) - 1]
    damaged = [whole[:cut] for cut in cuts]
    tensors = range(whole.index(b"data/0") + 64, len(whole) // 2, 97)
    damaged += [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in tensors]
    refused = []
    for content in damaged:
        path.write_bytes(content)
        try:
            found = load_model(path)
        except ValueError as error:
            refused.append(str(error))
        else:  # the flip hit padding between two tensors
            path.write_bytes(whole)
            expected = load_model(path).parameters
            assert all(torch.equal(found.parameters[n], v) for n, v in expected.items())
    assert len(refused) >= len(cuts) + 2
    assert all(line.startswith(str(path)) and "\n" not in line for line in refused)


def test_a_folder_or_nothing_is_no_model_file(tmp_path):
    for path in (tmp_path, tmp_path / "absent.pt"):
        with pytest.raises(ValueError, match="no such model file"):
            load_model(path)


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """Torch stores its members; one that is deflated may be a thousand times as large."""
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(50 << 20))
    with pytest.raises(ValueError, match=r"no readable model file.*would unpack to 52,428,800"):
        load_model(path)


def test_code_in_a_file_is_never_run(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"format": FORMAT, "spec": Malicious()}, path)
    with pytest.raises(ValueError, match="no readable model file"):
        load_model(path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match="no readable model file"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.update(format=0), "another format than 1; write it anew"),
        (lambda c: c.pop("origin"), "has no origin"),
        (lambda c: c.pop("spec"), "has no spec"),
        (lambda c: c["parameters"].pop("embedding"), "not those of the model it describes"),
        (lambda c: c["spec"].update(hidden_dim=5), "not those of the model it describes"),
        (lambda c: c["spec"].update(hidden_dim=-1), "hidden_dim"),
        (lambda c: c["spec"].update(colour="red"), "of another version: colour"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(path, change, match):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(ValueError, match=match):
        load_model(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="is no model file"):
        load_model(path)


def test_nothing_is_left_of_a_file_that_could_not_be_written(model, tmp_path):
    unwritable = replace(model, origin={"kind": lambda: None})
    with pytest.raises(Exception, match="pickle"):
        save_model(tmp_path / "model.pt", unwritable)
    assert list(tmp_path.iterdir()) == []


class TestCheckpoints:
    @pytest.fixture
    def folder(self, tmp_path):
        return RunFolder(tmp_path)

    def save(self, folder, *rounds):
        for round in rounds:
            moments = {"first": {"embedding": torch.full((50, 4), float(round))}}
            state = ServerState(round, initialise(SPEC, seed=round), moments)
            save_checkpoint(folder, state, f"head {round}")

    def test_the_newest_comes_back_and_old_ones_go(self, folder):
        self.save(folder, 0, 5, 10, 1_000_000)
        assert list(folder.checkpoints()) == [10, 1_000_000]
        state, head = newest_checkpoint(folder)
        assert (state.round, head) == (1_000_000, "head 1000000")
        expected = initialise(SPEC, seed=1_000_000)
        assert all(torch.equal(state.parameters[n], v) for n, v in expected.items())
        assert state.moments["first"]["embedding"][0, 0] == 1_000_000

    def test_what_is_no_checkpoint_is_passed_over(self, folder, model):
        self.save(folder, 3)
        save_model(folder.checkpoint_path(7), model)
        (folder.path / "checkpoints" / "round-x.pt").write_text("")
        (folder.path / "checkpoints" / ".round-000009.pt.abc").write_text("")
        assert newest_checkpoint(folder)[0].round == 3

    def test_without_any_a_run_must_start_anew(self, folder):
        with pytest.raises(ValueError, match="start the run again"):
            newest_checkpoint(folder)


def test_a_disk_without_room_is_an_error_of_the_disk(tmp_path, monkeypatch):
    """As torch's writer says it: a RuntimeError of another text in every version."""

    def full(content, path):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="could not be written whole; is there room on the disk"):
        write_tensors(tmp_path / "model.pt", {"a": 1})
