"""How much memory is left, of fabricated control groups."""

import pytest

from core import memory


def group(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """The folder of the groups; call it with what /proc/self/cgroup holds."""
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")

    def belong(text):
        (tmp_path / "membership").write_text(text)
        return tmp_path / "cgroup"

    return belong


def test_the_limit_of_a_batch_systems_job_counts_for_its_steps(groups):
    top = groups("0::/slurm/job_7/step_0/task_0\n")
    group(top / "slurm/job_7/step_0/task_0", memory__max="max\n", memory__current="900\n",
          memory__stat="inactive_file 0\n")
    group(top / "slurm/job_7", memory__max="4000\n", memory__current="1000\n",
          memory__stat="anon 700\ninactive_file 200\nactive_file 100\n")
    assert memory.of_groups() == [3300]
    assert memory.left() == 3300


def test_a_container_sees_its_own_group_at_the_top(groups):
    top = groups("9:cpu:/docker/abc\n4:memory:/docker/abc\n")
    group(top / "memory", memory__limit_in_bytes="5000\n", memory__usage_in_bytes="2000\n",
          memory__stat="inactive_file 1\nactive_file 2\n"
                       "total_inactive_file 300\ntotal_active_file 50\n")
    assert memory.of_groups() == [3350]


def test_a_group_that_is_full_has_nothing_left(groups):
    top = groups("0::/\n")
    group(top, memory__max="1000\n", memory__current="1200\n", memory__stat="inactive_file 0\n")
    assert memory.of_groups() == [0]


def test_without_groups_nothing_is_said(groups):
    groups("0::/none\n")
    assert memory.of_groups() == []
