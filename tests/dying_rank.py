"""purify.py as rank 1 of several that dies after its first slice; for test_ddpm.py."""

import os
import signal

import core.run
import purify
from core.files import RowFile

core.run.SAVE_SECONDS = 0.0
original = RowFile.write
written = []


def write(self, start, rows):
    original(self, start, rows)
    written.append(start)
    if os.environ["RANK"] == "1" and len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)


RowFile.write = write
raise SystemExit(purify.main())
