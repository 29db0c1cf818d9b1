"""A store of rounds whose file or disk fails says so in a line, with the remedy."""

from __future__ import annotations

import pytest

from pfl_lm.network.store import Store


@pytest.fixture
def path(tmp_path):
    store = Store.create(
        tmp_path / "rounds.sqlite", {number: bytes([number]) for number in range(3)}
    )
    store.invited(0, bytes(32))
    store.abandoned(0)
    store.close()
    return tmp_path / "rounds.sqlite"


@pytest.mark.parametrize(
    "damage",
    [
        lambda sound: b"no database, but long enough to be taken for the header of one" * 4,
        lambda sound: sound[: len(sound) // 2],
        lambda sound: sound[:4096] + bytes(len(sound) - 4096),
    ],
    ids=["garbage", "cut off", "zeros"],
)
def test_a_damaged_store_is_called_that(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"rounds\.sqlite is (damaged|no sound store).*put the store"
    ):
        Store.open(path)


def test_a_full_disk_is_told_as_that_and_the_round_is_not_open(path):
    store = Store.open(path)
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match=r"cannot be .* full; make room on the disk, then --resume"):
        store.invited(1, bytes(1 << 20))
    assert [row.round for row in store.rounds()] == [0]
    store._database.execute(f"PRAGMA max_page_count = {2 * pages}")
    store.invited(1, bytes(32))
    store.close()
