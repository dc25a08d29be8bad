"""A command in a fork of this process, and torchrun in small: several ranks of one.

Starting Python and loading torch takes longer than what most commands do. A fork computes with one
thread: a process that used several does not hand them on. If a rank fails, the others are killed.
"""

import functools
import os
import runpy
import signal
import socket
import sys
import tempfile
import time

import torch

from core import distributed
from scripts.tables import processes


class Forked:
    """`script.py ...` or `-m module ...`, with what the tests use of subprocess.Popen."""

    def __init__(self, words: list[str], ranks: int, environment: dict[str, str]) -> None:
        load()
        self.stdout, self.stderr = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
        self.child = processes.fork(
            functools.partial(main, words, ranks, self.stdout.fileno()), words,
            stderr=self.stderr, env=environment, pass_fds=(self.stdout.fileno(),))
        self.pid = self.child.pid

    @property
    def returncode(self) -> int | None:
        return self.child.poll()

    def wait(self, timeout: float = 60) -> int:
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            assert time.monotonic() < deadline, "it hangs"
            time.sleep(0.02)
        return self.returncode

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        self.wait(timeout)
        for file in (self.stdout, self.stderr):
            file.seek(0)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        if self.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)


def load() -> None:
    """The rest of torch that training needs: once here, and not in every fork."""
    torch.optim.SGD([torch.zeros(1)], lr=0.1)


def main(words: list[str], ranks: int, stdout: int) -> int:
    """What the fork does: its exit status."""
    os.dup2(stdout, 1)
    torch.set_num_threads(1)
    distributed.world.cache_clear()
    if not ranks:
        return run(words)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    children = []
    for rank in range(ranks):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            return run(words)
    while children:
        ended, status = os.wait()
        children.remove(ended)
        if status:              # the others would wait for it
            for other in children:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


def run(words: list[str]) -> int:
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.stdout.flush()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0
