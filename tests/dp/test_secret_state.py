"""States in parts: what their bytes name, and what leaves the process."""

from __future__ import annotations

import io
import pickle

from pfl_lm.dp.secret_state import SecretState, join, name_of, part_names, rest


def test_a_state_names_its_parts_and_keeps_them_where_it_is_copied():
    parts = {name_of(part): part for part in (b"one", b"two" * 50)}
    state = join(parts, b"what is left")
    assert part_names(io.BytesIO(state)) == list(parts)
    assert rest(state) == b"what is left"
    assert SecretState(state).parts == parts
    assert join({name_of(b"other"): b"other"}, b"what is left") != state
    assert SecretState(bytes(state)).parts == {}


def test_a_state_without_parts_is_its_bytes():
    for content in (b"", b"pfl-lm", b"as a mechanism wrote it" * 9):
        assert part_names(io.BytesIO(content)) == []
        assert rest(content) == content
    assert rest(join({}, b"no record yet")) == b"no record yet"


def test_neither_bytes_nor_parts_leave_the_process():
    state = join({name_of(b"past sums"): b"past sums"}, b"more of them")
    again = pickle.loads(pickle.dumps(state))
    assert again == b""
    assert SecretState(again).parts == {}
