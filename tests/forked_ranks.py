"""torchrun in small: `python -m tests.forked_ranks COUNT script.py ...` or `COUNT -m module ...`.

Each rank is a fork of one Python, which has loaded torch and computed nothing yet: starting and
loading takes longer than what the ranks do. If one fails, the others are killed.
"""

import os
import runpy
import signal
import socket
import sys

import torch

torch.optim.SGD([torch.zeros(1)], lr=0.1)       # loads the rest of torch that training needs


def run(rank: int, words: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    count, words = int(sys.argv[1]), sys.argv[2:]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    ranks = []
    for rank in range(count):
        ranks.append(os.fork())
        if ranks[-1] == 0:
            run(rank, words)
            break
    else:
        while ranks:
            ended, status = os.wait()
            ranks.remove(ended)
            if status:              # the others would wait for it
                for other in ranks:
                    os.kill(other, signal.SIGKILL)
                sys.exit(1)
