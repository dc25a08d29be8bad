"""What the tests share: a command run in process, ImageSet folders written by NumPy alone, runs."""

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_ranks import Forked
from PIL import Image

from core import commit, files
from core.datasets import DataSettings, load
from core.device import DeviceSettings
from core.imageset import ImageSet, from_arrays
from core.job import Job
from core.run import Run
from learners import reweighted_head, standard

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
THREADS = int(os.environ.get("OMP_NUM_THREADS", 2))
torch.set_num_threads(THREADS)


def checkout(folder: Path) -> Path:
    """The code alone, put into a folder."""
    for name in ("core", "models", "poisons", "purifiers", "learners", "scripts", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    return folder


def to_memory() -> None:
    """The tests' folders go to memory, where there is enough and programs may run: a disk takes
    milliseconds for each fsync, and there are tens in a run. TMPDIR says otherwise."""
    memory = Path("/dev/shm")
    if "TMPDIR" not in os.environ and os.access(memory, os.W_OK) \
            and shutil.disk_usage(memory).free > 6 * 2**30 \
            and not os.statvfs(memory).f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = str(memory)
        tempfile.tempdir = None                     # what was found before is forgotten


to_memory()


def pytest_configure(config: pytest.Config) -> None:
    """The suite is of the CPU, where equal runs give equal bytes; `-m cuda` is of the GPU. AMX=on
    and AMX=off make this processor say that it has those instructions, or has not."""
    if not re.search(r"(?<!not )\bcuda\b", config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "AMX" in os.environ:
        answer = {"on": True, "off": False}[os.environ["AMX"]]
        torch.cpu._is_amx_tile_supported = lambda: answer


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `error` is its one `error: ...` line without the word, or None."""

    status: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str | None:
        found = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        return found[0].removeprefix("error: ") if len(found) == 1 else None

    @property
    def path(self) -> Path:
        """The artefact that the command names on stdout."""
        return Path(re.sub(r"^\d\.\d{4} ", "", self.stdout.splitlines()[-1]))      # an accuracy


def run_command(main, *arguments: object) -> Outcome:
    """Call a command's `main` in this process, as `python -m ...` would, and catch its output."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
    return Outcome(status, stdout.getvalue(), stderr.getvalue())


def succeed(main, *arguments: object) -> Path:
    """Run a command that must work; the folder that it made."""
    outcome = run_command(main, *arguments)
    assert outcome.status == 0, outcome.stderr
    return outcome.path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content(folder: Path) -> dict[str, str]:
    """Digest of every array or weight file of an artefact: what two equal runs share."""
    return {path.name: digest(path) for path in sorted(folder.iterdir())
            if path.suffix in (".npy", ".safetensors")}


def log_of(folder: Path) -> list[dict]:
    """What a run told, without how long it took."""
    lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def process(*words: object, ranks: int = 0, torchrun: bool = False, **environment: str
            ) -> subprocess.Popen | Forked:
    """A command beside this process, perhaps of several ranks, in the way of torchrun or by it, and
    by a new Python then. One thread: the same sums."""
    line = [str(word) for word in words]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    if not torchrun and line[0] != "-c":
        return Forked(line, ranks, environment)
    start = [sys.executable]
    if torchrun:
        start += ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port",
                  "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    return subprocess.Popen([*start, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, **environment})


class Death(BaseException):
    """As sudden as a kill, but within this process: what nothing catches."""


@contextlib.contextmanager
def operations(die_at: int | None = None) -> Iterator[list[str]]:
    """The changes on disk inside, as they happen; the one of number `die_at` raises Death."""
    seen: list[str] = []

    def operation(kind, path):
        seen.append(kind)
        if len(seen) == die_at:
            raise Death

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "operation", operation)
        yield seen


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    """Wait for what must come to hold within these seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def as_set(images: np.ndarray, labels: np.ndarray | None = None, classes: int = 10) -> ImageSet:
    """A set in memory, of no history; without labels, all is of the first class."""
    labels = np.zeros(len(images), np.int64) if labels is None else labels
    return from_arrays(images, labels, name="x", classes=[str(i) for i in range(classes)], root={},
                       test=None)


def count(module: torch.nn.Module) -> int:
    """Its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def as_floats(images: np.ndarray) -> torch.Tensor:
    """Levels (N, H, W, 3) as float32 (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255


def assert_almost_equal_levels(found: np.ndarray, floats: np.ndarray, rounding=np.rint) -> None:
    """Equal up to pixels on the edge between two levels: batches differ in the last bit."""
    difference = np.abs(found.astype(int) - rounding(floats * 255))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def patterned(few: ImageSet, folder: Path) -> Path:
    """The few digits with one pattern a class, as an ImageSet folder."""
    patterns = np.random.default_rng(0).integers(-20, 21, (10, 16, 16, 3))
    images = np.clip(few.images.astype(int) + patterns[few.labels], 0, 255).astype(np.uint8)
    return write_imageset(folder, images, few.labels)


def write_imageset(folder: Path, images: np.ndarray, labels: np.ndarray, classes: int = 10,
                   **meta: object) -> Path:
    """An ImageSet folder written with NumPy and JSON alone, as the format is documented."""
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    sign(folder, {"fingerprint": hashlib.sha256(images.tobytes()).hexdigest(), "name": folder.name,
                  "classes": [str(i) for i in range(classes)], "root": {"data": "digits"},
                  "test": {"data": "digits", "size": 16, "split": "test"}, "lineage": [], **meta})
    return folder


def save_image(folder: Path, name: str, array: np.ndarray, mode: str | None = None) -> None:
    """An image file, in a folder that is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(folder / name)


def sign(folder: Path, meta: dict) -> None:
    """Write meta.json with the digests of the arrays as they are now; it has none of its own, as
    those of older artefacts."""
    digests = {path.name: digest(path) for path in folder.glob("*.npy")}
    meta = {"format": 1, "kind": "imageset", **meta, "digests": digests}
    meta.pop("sha256", None)
    (folder / "meta.json").write_text(json.dumps(meta))


def edit_record(folder: Path, **changes: object) -> None:
    """Change entries of a record, and sign it again."""
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    meta = json.loads((folder / "meta.json").read_text())
    meta["digests"]["record.json"] = digest(path)
    meta.pop("sha256", None)
    (folder / "meta.json").write_text(json.dumps(meta))


@contextlib.contextmanager
def new_run(out: Path, *, seed: int = 0, method: str = "test", config: dict | None = None,
            ) -> Iterator[Run]:
    """A run of its own, for calling a module without its command."""
    job = Job("tests", "test", method, 1, config or {}, seed, {})
    with Run(job, out=out, device=DeviceSettings(device="cpu", precision="fp32")) as run:
        yield run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test works in a folder of its own, so that default outputs never reach the project."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="session")
def no_waiting():
    """What a power cut leaves is asked of core.files' operations, none of which waits for the disk;
    and git says which commit runs once, instead of for every record."""
    with pytest.MonkeyPatch.context() as patch:
        of_code, once = commit.of_code, functools.cache(commit.of_code)
        patch.setattr(commit, "of_code", lambda *folder: of_code(*folder) if folder else once())
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def same_switches():
    """What a test's runs set for the whole process is not the next test's."""
    yield
    torch.set_num_threads(THREADS)
    torch.set_float32_matmul_precision("highest")
    torch.set_default_dtype(torch.float32)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def short_refit(monkeypatch):
    """reweighted_head takes one epoch of its refit, some twenty passes of L-BFGS, not fifteen."""
    monkeypatch.setattr(reweighted_head, "EPOCHS", 1)


@pytest.fixture(scope="session")
def digits() -> ImageSet:
    """All 1,437 training digits, 16x16."""
    return load(DataSettings("digits"))


@pytest.fixture(scope="session")
def few(digits) -> ImageSet:
    """The first 320 training digits."""
    return digits.first(320)


@pytest.fixture(scope="session")
def few_path(few, tmp_path_factory) -> Path:
    """The same as an ImageSet folder that remembers its test set. Not to be changed."""
    return write_imageset(tmp_path_factory.mktemp("sets") / "few", few.images, few.labels)


@pytest.fixture
def images() -> np.ndarray:
    """60 random images of 16x16, uint8."""
    return np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    """Labels of `images`: six of each of ten classes, in random order."""
    return np.random.default_rng(1).permutation(np.arange(60, dtype=np.int64) % 10)


@pytest.fixture
def transform_of(monkeypatch, tmp_path):
    """What a learner would hand to the loop as `transform` for a set, and the run that it draws
    from."""
    def of(module, config, train: ImageSet):
        caught = {}

        def catch(*arguments, **handed):
            caught.update(handed)
            return None, None

        monkeypatch.setattr(standard, "train_classifier", catch)
        with new_run(tmp_path / "transform") as run:
            module.fit(train, train, config, run)
        return caught["transform"], run

    return of
