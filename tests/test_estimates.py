"""The timings of before: damaged lines, unreadable files, whole lines."""

import os

import pytest

from core import files
from scripts.tables import estimates


def test_torn_and_foreign_lines_of_the_timings_do_not_count():
    good = '{"key": ["poison", "lsp", {"epochs": 2}, 50], "seconds": 2}'
    for line in ('{"key": ["poison", "l', "[1, 2]", '{"key": ["a", "b", 7, 7], "seconds": 1}',
                 '{"key": ["a", "b", {"epochs": "x"}, 7], "seconds": 1}', '{"key": "abcd"}',
                 '{"key": ["a", [], {}, 7], "seconds": 1}', '{"key": ["a", "b", {}, 0]}', "7",
                 '{"key": 1}', "\xff\xfe", "[" * 100_000,
                 '{"key": 1, "seconds": "soon"}', '{"key": 1, "seconds": NaN}',
                 f'{{"key": 1, "seconds": {10**400}}}', '{"key": 1, "seconds": -3}'):
        files.mkdir(estimates.TIMINGS.parent)
        estimates.TIMINGS.write_text(f"{good}\n{line}\n{good}\n{line}", "latin-1")
        found, end = estimates.read_timings()
        assert found == [(["poison", "lsp", {"epochs": 2}, 50], 2)] * 2, line
        assert end == len(f"{good}\n{line}\n{good}\n".encode("latin-1"))    # the last may be torn


@pytest.mark.parametrize("place", ["nothing", "a folder", "below a file", "a pipe"])
def test_timings_that_cannot_be_read_or_written_are_skipped(tmp_path, monkeypatch, place):
    path = tmp_path / "timings.jsonl"
    if place == "a folder":
        path.mkdir()
    elif place == "a pipe":
        os.mkfifo(path)
    elif place == "below a file":
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "timings.jsonl"
    monkeypatch.setattr(estimates, "TIMINGS", path)
    assert estimates.read_timings() == ([], 0)
    estimates.append_or_skip(path, b"x")
    assert place != "nothing" or path.read_bytes() == b"\nx\n"


def test_a_torn_line_spoils_no_other(tmp_path):
    path = tmp_path / "timings.jsonl"
    path.write_bytes(b"one\ntor")
    estimates.append_or_skip(path, b"two")
    assert path.read_bytes() == b"one\ntor\ntwo\n"
