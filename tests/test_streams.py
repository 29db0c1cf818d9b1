from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.streams import key, stream

labels = st.lists(st.one_of(st.integers(), st.text()), max_size=4)


@given(st.integers(), labels)
def test_a_stream_depends_on_its_labels_alone(seed, names):
    first = stream(seed, *names).integers(0, 2**63, 8)
    stream(seed, "another").random(100)
    assert np.array_equal(first, stream(seed, *names).integers(0, 2**63, 8))


@given(st.integers(), labels, labels)
def test_different_labels_give_different_keys(seed, one, other):
    if [(type(x), x) for x in one] != [(type(x), x) for x in other]:
        assert key(seed, *one) != key(seed, *other)


def test_where_a_label_ends_matters():
    assert key(1, "ab", "c") != key(1, "a", "bc")
    assert key(1, 2) != key(1, "2")
