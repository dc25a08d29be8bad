"""Pickles of others: nothing in them runs, and none takes more than it holds."""

import os
import pickle
from pathlib import Path

import foreign
import numpy as np
import pytest
import torch
from foreign import wrong

from core import pickles
from core.errors import UserError

base = foreign.base


class Reduce:
    def __reduce__(self):
        return os.system, ("touch ran",)


class SetState:
    def __setstate__(self, state):
        Path("ran").touch()

    def __getstate__(self):
        return {"x": 1}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [Reduce(), SetState(), [Reduce()], {"data": SetState()},
                                   np.array([Reduce()], dtype=object)])
def test_nothing_in_a_pickle_runs(tmp_path, base, value, protocol):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    assert "refused, for it asks for" in wrong(tmp_path / "evil.pkl", base)
    assert not Path("ran").exists()


def test_arrays_of_objects_are_refused(tmp_path, base):
    np.save(tmp_path / "evil.npy", np.array([Reduce()], dtype=object), allow_pickle=True)
    assert "not a readable .npy of plain numbers" in wrong(tmp_path / "evil.npy", base)
    np.savez(tmp_path / "evil.npz", data=np.array([Reduce()], dtype=object))
    assert "not a readable .npz of plain arrays" in wrong(tmp_path / "evil.npz", base)
    torch.save(Reduce(), tmp_path / "evil.pt")
    assert "not a torch file of plain tensors" in wrong(tmp_path / "evil.pt", base)
    assert not Path("ran").exists()


def test_a_bomb_of_references_stays_small(tmp_path):
    """Each list holds the one before it twice: 2^60 leaves, if one unfolded them."""
    bomb: list = [0]
    for _ in range(60):
        bomb = [bomb, bomb]
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(bomb))
    with pytest.raises(UserError, match="containers more than 4 deep"):
        pickles.read(tmp_path / "bomb.pkl")
    wide = [[0] * 100] * 100
    (tmp_path / "wide.pkl").write_bytes(pickle.dumps(wide))
    found = pickles.read(tmp_path / "wide.pkl")
    assert found == wide
    assert found[0] is found[99]
    claimed = pickle.dumps(np.zeros(4, np.uint8), protocol=2).replace(b"K\x04", b"K\xff")
    (tmp_path / "claimed.pkl").write_bytes(claimed)
    with pytest.raises(UserError, match="not a whole pickle"):
        pickles.read(tmp_path / "claimed.pkl")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [
    np.arange(24, dtype=np.int8).reshape(2, 3, 4), np.arange(6.0).reshape(2, 3).T,
    np.arange(5, dtype=">i4"), {"a": [1, -2, 2**40], b"b": (1.5, None, True)}, [(b"xyz", 3)],
    np.float64(2.5), "text"])
def test_plain_data_come_through(tmp_path, value, protocol):
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    found = pickles.read(tmp_path / "plain.pkl")
    if isinstance(value, np.ndarray):
        np.testing.assert_array_equal(found, value)
        assert found.dtype == value.dtype
    else:
        assert found == value


def test_pickles_that_would_take_long_or_much(tmp_path):
    """Shared text asked for as a module's name, many marks, one string decoded again and again."""
    shared = [b"(" + b"I1\n" * 3 + b"tp0\n"]
    shared += [f"(g{i}\ng{i}\ng{i}\ng{i}\ng{i}\ng{i}\ntp{i + 1}\n".encode() for i in range(12)]
    (tmp_path / "repr.pkl").write_bytes(b"\x80\x04" + b"".join(shared) + b"\x8c\x01a\x93.")
    marks = b"\x80\x02" + b"(" * 20_000 + b"t" * 20_000 + b"."
    (tmp_path / "marks.pkl").write_bytes(marks)
    text = b"X" + (100_000).to_bytes(4, "little") + b"a" * 100_000 + b"q\x00"
    call = b"c_codecs\nencode\nh\x00\x85R"
    (tmp_path / "many.pkl").write_bytes(b"\x80\x02]" + text + b"a" + (call + b"a") * 5000 + b".")
    for name, words in (("repr", "a tuple in the place of a str"), ("marks", "4 deep"),
                        ("many", "more bytes than it could hold")):
        with pytest.raises(UserError, match=words):
            pickles.read(tmp_path / f"{name}.pkl")
