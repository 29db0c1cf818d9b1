"""Messages between two Pythons."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from pfl_lm.interop.worker.frames import receive, send

NUMBERS = arrays_of.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_]),
    arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
HEADS = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none())


@given(st.lists(st.tuples(HEADS, st.dictionaries(st.text(max_size=3), NUMBERS, max_size=3))))
def test_messages_arrive_as_they_were_sent(messages):
    pipe = io.BytesIO()
    for head, arrays in messages:
        send(pipe, head, arrays)
    pipe.seek(0)
    for head, arrays in messages:
        found, received = receive(pipe)
        assert found == head
        assert set(received) == set(arrays)
        for name, array in arrays.items():
            assert received[name].dtype == array.dtype
            np.testing.assert_array_equal(received[name], array)
    assert receive(pipe) is None


def test_slices_arrive_too():
    pipe = io.BytesIO()
    array = np.arange(12.0).reshape(3, 4).T[::2]
    send(pipe, None, {"a": array})
    pipe.seek(0)
    np.testing.assert_array_equal(receive(pipe)[1]["a"], array)


def test_an_end_in_the_middle_is_an_error():
    whole = io.BytesIO()
    send(whole, {"task": "x"}, {"a": np.ones(5)})
    for length in (3, 20, len(whole.getvalue()) - 1):
        with pytest.raises((EOFError, ValueError)):
            receive(io.BytesIO(whole.getvalue()[:length]))


def test_what_is_no_message_is_refused():
    with pytest.raises(ValueError, match="does not carry messages"):
        receive(io.BytesIO(b"2026-11-22 21:00:00 a line of a log"))


def test_objects_do_not_travel():
    with pytest.raises(ValueError, match="only numbers"):
        send(io.BytesIO(), None, {"a": np.array([None])})
