"""Files made to harm: each costs one sentence, little memory and little time.

The quick tests call the readers. The slow one makes them all and gives each to the commands that
take its kind, in a process of its own that must stay below 2 GB and 60 s; it prints the table of
docs/evidence/hostile-inputs.md:

    bash scripts/test.sh -m slow tests/test_hostile.py -s
"""

import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import time
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS, Outcome, run_command, write_imageset
from PIL import Image

import purify
from core import pickles, pictures, reading, torchfile
from core.errors import UserError
from poisons.__main__ import main as poison
from scripts.exchange import import_ddpm, import_poison

MOST_BYTES, MOST_SECONDS = 2 << 30, 60
BASE = ["--base", "digits", "--size", "32"]
HUGE, BOMB = 1 << 40, 3 << 29


# --- making them -----------------------------------------------------------------------------


def npy_header(shape: str, descr: str = "|u1", version: int = 1, length: int | None = None,
               ) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


def npz(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED,
        ) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def zeros(path: Path, name: str, start: bytes, total: int) -> None:
    """A zip with one deflated member of `start` and zeros, `total` bytes unfolded."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, \
            archive.open(name, "w", force_zip64=True) as stream:
        stream.write(start)
        chunk, left = bytes(1 << 24), total - len(start)
        while left > 0:
            stream.write(chunk[:left])
            left -= len(chunk)


def lie(path: Path, claimed: int) -> None:
    """Let a zip's directory claim another unfolded size of its first member."""
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<I", claimed)
    path.write_bytes(data)


def sparse(path: Path, start: bytes, size: int) -> None:
    """A file that is mostly a hole."""
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(size)


def torch_pickle(path: Path, data: bytes, **records: bytes) -> None:
    npz(path, {"x/data.pkl": data, "x/byteorder": b"little", "x/version": b"3\n",
               **{f"x/data/{key}": record for key, record in records.items()}})


def tensor_opcodes(length: int, size: bytes = b"K\x02K\x02\x86", stride: bytes = b"K\x02K\x01\x86",
                   ) -> bytes:
    """A pickle of one float tensor over the storage '0'."""
    number = b"\x8a\x08" + length.to_bytes(8, "little", signed=True)
    storage = (b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu" + number
               + b"tQ")
    return (b"\x80\2ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + size + stride
            + b"\x89ccollections\nOrderedDict\n)RtR.")


def safetensors(path: Path, header: object, data: bytes = bytes(64), length: int | None = None,
                ) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def png(path: Path, width: int, height: int) -> None:
    """A PNG of black of that size, whose bytes are few."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (struct.pack(">I", len(data)) + kind + data
                + struct.pack(">I", zlib.crc32(kind + data)))

    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def keys(texts: list[bytes]) -> bytes:
    """A pickle of a dict with these keys, as opcodes."""
    return b"\x80\2}(" + b"".join(text + b"N" for text in texts) + b"u."


def long(number: int) -> bytes:
    size = number.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + number.to_bytes(size, "little", signed=True)


CALL, DEEP, QUICK = b"\x85R.", 2_000_000, 50_000
PICKLES: dict[str, bytes] = {
    "colliding-keys": keys([long(k * (2**61 - 1)) for k in range(1, 60_000)]),
    "colliding-memo": b"\x80\2N" + b"".join(
        f"p{k * (2**61 - 1)}\n".encode() for k in range(1, 60_000)) + b".",
    "colliding-tuples": keys([b"(" + b"".join(
        long(-1 - (k >> bit & 1)) for bit in range(16)) + b"t" for k in range(5000)]),
    "deep-tuple": b"\x80\2)" + b"\x85" * DEEP + b".",
    "deep-key": b"\x80\2})" + b"\x85" * DEEP + b"Ns.",
    "deep-list": b"\x80\2" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "deep-code": b"\x80\2cnumpy\ndtype\n)" + b"\x85" * DEEP + CALL,
    "bytearray": b"\x80\2cbuiltins\nbytearray\n" + long(6 * 10**9) + CALL,
    "claimed-bytes": b"\x80\4\x8e" + struct.pack("<Q", 6 * 10**9) + b"x.",
    "claimed-long": b"\x80\2\x8b" + struct.pack("<I", 2**31 - 1) + b"x.",
    "many-lists": b"\x80\2]" + b"(" + b"]" * 6_000_000 + b"e.",
    "system": b"\x80\2cos\nsystem\nX\x09\0\0\0touch ran" + CALL,
    "array-of-holes": b"\x80\2cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85X\1\0"
                      b"\0\0b\x87R(K\1" + long(HUGE) + b"\x85cnumpy\ndtype\nX\2\0\0\0u1K\0K\1\x87R"
                      b"(K\3X\1\0\0\0|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89X\0\0\0\0tb.",
}
HEADERS: dict[str, bytes] = {
    "negative": npy_header("(-5, 32, 32, 3)"),
    "2-to-70": npy_header(f"({2**70}, 32, 32, 3)"),
    "overflowing": npy_header(f"({2**32}, {2**32}, {2**32}, 3)"),
    "terabyte": npy_header(f"({HUGE // 3072}, 32, 32, 3)") + bytes(64),
    "truth": npy_header("(True, 32, 32, 3)") + bytes(4000),
    "long-header": npy_header("(1,)", version=2, length=2**32 - 1),
    "nested-header": npy_header("(" * 4000 + ")" * 4000),
    "objects": npy_header("(1,)", descr="|O") + pickle.dumps([1]),
    "fields": npy_header("(1,)").replace(b"'|u1'", b"[('a', '<i4', (1000000,))]"),
    "wide-item": npy_header("(1,)", descr="|V2000000000"),
    "version-9": npy_header("(1,)", version=9),
    "short": npy_header("(10, 32, 32, 3)") + bytes(99),
}


def hostile(folder: Path) -> dict[str, Path]:
    """kind/name -> a file or folder made to harm."""
    for name, data in PICKLES.items():
        (folder / f"{name}.pkl").write_bytes(data)
        torch_pickle(folder / f"{name}.pt", data)
    for name, data in HEADERS.items():
        (folder / f"{name}.npy").write_bytes(data)
        npz(folder / f"{name}.npz", {"images.npy": data, "data.npy": data,
                                     "labels.npy": npy_header("(1,)", "<i8") + bytes(8)})
    sparse(folder / "hole.npy", npy_header(f"({HUGE // 3072}, 32, 32, 3)"), HUGE)
    sparse(folder / "hole.pkl", b"\x80\4\x8e" + struct.pack("<Q", HUGE - 20), HUGE)
    sparse(folder / "hole.pt", b"PK\3\4", HUGE)
    sparse(folder / "hole.safetensors", struct.pack("<Q", 2), HUGE)

    bomb = npy_header(f"({BOMB // 3072}, 32, 32, 3)")
    zeros(folder / "bomb.npz", "images.npy", bomb, len(bomb) + BOMB)
    (folder / "liar.npz").write_bytes((folder / "bomb.npz").read_bytes())
    lie(folder / "liar.npz", 1000)
    zeros(folder / "zip-header.npz", "images.npy", npy_header("", version=2, length=2**31), 1 << 27)
    npz(folder / "bzip2.npz", {"images.npy": HEADERS["short"]}, zipfile.ZIP_BZIP2)
    npz(folder / "many.npz", {f"{i:x}": b"" for i in range(400_000)})
    (folder / "no-zip.npz").write_bytes(b"PK\5\6" + bytes(18))

    zeros(folder / "deflated.pt", "x/data/0", b"", 1 << 28)
    with zipfile.ZipFile(folder / "deflated.pt", "a") as archive:
        archive.writestr("x/data.pkl", tensor_opcodes(1 << 26))
    torch_pickle(folder / "claimed-storage.pt", tensor_opcodes(1 << 35), **{"0": bytes(16)})
    torch_pickle(folder / "negative-storage.pt", tensor_opcodes(-4), **{"0": bytes(16)})
    torch_pickle(folder / "outside.pt", tensor_opcodes(4, b"K\x40K\x02\x86"), **{"0": bytes(16)})
    torch_pickle(folder / "negative-size.pt", tensor_opcodes(4, b"J\xff\xff\xff\xffK\x02\x86"),
                 **{"0": bytes(16)})
    torch_pickle(folder / "expanded.pt", tensor_opcodes(
        4, long(2**20) + long(2**15) + b"\x86", b"K\0K\0\x86"), **{"0": bytes(16)})
    torch_pickle(folder / "no-storage.pt", tensor_opcodes(4))
    old = io.BytesIO()
    torch.save({"data": torch.zeros(4)}, old, _use_new_zipfile_serialization=False)
    (folder / "old-claim.pt").write_bytes(old.getvalue().replace(
        b"K\x04N", b"\x8a\x05\0\0\0\0\x40N"))        # the storage's length
    (folder / "old-short.pt").write_bytes(old.getvalue()[:-4])

    entry = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    nan = np.full(16, np.nan, np.float32).tobytes()
    for name, header, data in (
            ("fp8", {"a": {**entry, "dtype": "F8_E4M3"}}, bytes(64)),
            ("odd-dtype", {"a": {**entry, "dtype": ["F32"]}}, bytes(64)),
            ("offsets", {"a": {**entry, "data_offsets": [0, HUGE]}}, bytes(64)),
            ("overlap", {"a": entry, "b": entry}, bytes(64)),
            ("shape", {"a": {**entry, "shape": [2**40, 2**40]}}, bytes(64)),
            ("negative", {"a": {**entry, "shape": [-4, -4]}}, bytes(64)),
            ("list", [1, 2], bytes(64)), ("nan", {"a": entry}, nan),
            ("infinite", {"a": entry}, np.full(16, np.inf, np.float32).tobytes()),
            ("nested", b'{"a":' * 100_000, b"")):
        safetensors(folder / f"{name}.safetensors", header, data)
    safetensors(folder / "length.safetensors", b"{}", length=2**63)

    laughs = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    key = "k0: &k0 [x, x]\n" + "".join(
        f"k{i}: &k{i} [*k{i - 1}, *k{i - 1}]\n" for i in range(1, 40)) + "? *k39\n: 1\n"
    for name, text in (("laughs", laughs), ("laughing-key", key), ("deep", "[" * 100_000),
                       ("deep-map", "{a: " * 50_000), ("deep-lines", "".join(
                           " " * i + "a:\n" for i in range(1500))),
                       ("cycle", "method: &m [*m]\n"), ("tag", "!!python/object/apply:os.system "
                                                              "['touch ran']\n"),
                       ("long", "a: " + "x" * (3 << 20)), ("base", "base: /dev/zero\n"),
                       ("many", "".join(f"k{i}: {{a: [1, 2]}}\n" for i in range(15_000)))):
        (folder / f"{name}.yaml").write_text(text)

    for suffix in ("npz", "npy", "pt", "pkl", "safetensors", "yaml", "png"):
        os.mkfifo(folder / f"fifo.{suffix}")
        (folder / f"zero.{suffix}").symlink_to("/dev/zero")
    for name, size in (("bomb", (40_000, 40_000)), ("large", (12_000, 12_000))):
        (folder / f"{name}.tree" / "0").mkdir(parents=True)
        png(folder / f"{name}.tree" / "0" / "0.png", *size)
    for name, source in (("fifo", "fifo.png"), ("zero", "zero.png"), ("number", "negative.npy")):
        (folder / f"{name}.tree" / "0").mkdir(parents=True)
        (folder / f"{name}.tree" / "0" / "0.png").symlink_to(folder / source)
    (folder / "script.tree" / "0").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "script.eps")
    (folder / "script.eps").rename(folder / "script.tree" / "0" / "0.png")
    (folder / "many.tiles" / "0").mkdir(parents=True)
    png(folder / "many.tiles" / "0" / "0.png", 9000, 9000)
    for i in range(1, 8):
        os.link(folder / "many.tiles" / "0" / "0.png", folder / "many.tiles" / "0" / f"{i}.png")

    for name, meta in (("deep", "[" * 1_000_000), ("list", "[]"), ("long", " " * (20 << 20)),
                       ("digits", '{"format": ' + "9" * 100_000 + "}")):
        (folder / f"{name}.set").mkdir()
        (folder / f"{name}.set" / "meta.json").write_text(meta)
    (folder / "fifo.set").mkdir()
    os.mkfifo(folder / "fifo.set" / "meta.json")
    rows = write_imageset(folder / "pipe.set", np.zeros((4, 8, 8, 3), np.uint8), np.arange(4))
    (rows / "images.npy").unlink()
    os.mkfifo(rows / "images.npy")
    return {f"{path.suffix[1:]}/{path.stem}": path for path in sorted(folder.iterdir())
            if path.suffix in READERS}


def imported(path: Path) -> Outcome:
    return run_command(import_poison.main, path, *BASE)


def as_data(path: Path) -> Outcome:
    return run_command(poison, "method=lsp", f"data={path}", "out=out")


def as_folder(path: Path) -> Outcome:
    return run_command(poison, "method=lsp", f"data=folder:{path}", "size=8", "out=out")


def as_set(path: Path) -> Outcome:
    return run_command(purify.main, CONFIGS / "purifiers" / "gray.yaml", f"data={path}", "out=out")


def as_yaml(path: Path) -> Outcome:
    return run_command(poison, path, "data=digits", "out=out")


def as_ddpm(path: Path) -> Outcome:
    return run_command(import_ddpm.main, path, "--data", "digits", "--split", "x", "--images", 1,
                       "--out", "out")


def as_diffusers(path: Path) -> Outcome:
    """A .safetensors file in the place of a diffusers folder's."""
    folder = Path("diffusers")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(
        {key: values[0] for key, values in import_ddpm.EXPECTED.items()}))
    for old in folder.glob("*.safetensors"):
        old.unlink()
    (folder / "diffusion_pytorch_model.safetensors").symlink_to(path.resolve())
    return as_ddpm(folder)


def as_lpips(path: Path) -> Outcome:
    from core.distance import build_lpips

    try:
        build_lpips("squeeze", str(path), None, (32, 32))
    except UserError as error:
        return Outcome(1, "", f"error: {error}")
    return Outcome(0, "", "")


READERS: dict[str, tuple[Callable[[Path], Outcome], ...]] = {
    ".npz": (as_data, imported, as_lpips), ".npy": (imported,),
    ".pt": (imported, as_ddpm, as_lpips), ".pkl": (imported,),
    ".safetensors": (as_diffusers, as_lpips), ".yaml": (as_yaml,),
    ".tree": (as_folder, imported), ".tiles": (imported,), ".set": (as_set,)}


# --- trying them -----------------------------------------------------------------------------


def measured(read: Callable[[Path], Outcome], path: Path) -> dict:
    """How a fork of this process fared: status, error, seconds, peak bytes (with this process's
    own), and whether anything was made or run."""
    results, answer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(MOST_SECONDS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MOST_BYTES,) * 2)
            started = time.perf_counter()
            outcome = read(path)
            os.write(answer, json.dumps({
                "status": outcome.status, "error": (outcome.error or outcome.stderr[-300:])[-300:],
                "seconds": time.perf_counter() - started,
                "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}).encode())
        finally:
            os._exit(0)
    os.close(answer)
    with os.fdopen(results) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"status": f"killed ({status})", "error": "",
                                          "seconds": MOST_SECONDS, "bytes": 0}


@pytest.mark.slow
def test_no_file_costs_more_than_a_sentence(tmp_path):
    folder = tmp_path / "hostile"
    folder.mkdir()
    found = defaultdict(list)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for name, path in hostile(folder).items():
        for read in READERS[path.suffix]:
            result = measured(read, path)
            left = [made for made in ("out", "ran", "runs") if Path(made).exists()]
            right = result["status"] == 1 and result["error"] and not left \
                and "Traceback" not in result["error"] and "out of memory" not in result["error"] \
                and result["seconds"] < MOST_SECONDS and result["bytes"] < MOST_BYTES
            for made in left:
                shutil.rmtree(made, ignore_errors=True)
            found[path.suffix[1:]].append((right, result))
            print(f"{'right' if right else 'WRONG'} {name} {read.__name__} "
                  f"{result['seconds']:.1f} s {result['bytes'] / 1e9:.2f} GB "
                  f"{result['error'].replace(str(folder), '')}")
    print(f"\n(the process before: {before / 1e9:.2f} GB)\n\n"
          "| kind | tried | right | peak memory (GB) | longest (s) |\n|---|---|---|---|---|")
    for kind, results in found.items():
        print(f"| {kind} | {len(results)} | {sum(bool(right) for right, _ in results)} | "
              f"{max(result['bytes'] for _, result in results) / 1e9:.2f} | "
              f"{max(result['seconds'] for _, result in results):.1f} |")
    assert all(right for results in found.values() for right, _ in results)


@pytest.mark.parametrize("name", [name for name in PICKLES if name != "many-lists"])
def test_a_pickle_that_would_fill_memory_or_time_is_refused(tmp_path, name):
    data = PICKLES[name]
    for kind in (b"\x85", b"]", b"a"):
        data = data.replace(kind * (DEEP - 1), kind * QUICK)
    (tmp_path / "x.pkl").write_bytes(data)
    torch_pickle(tmp_path / "x.pt", data)
    for read in (pickles.read, torchfile.load):
        with pytest.raises(UserError, match=r"x\.p(kl|t)"):
            read(tmp_path / ("x.pkl" if read is pickles.read else "x.pt"))
    assert not Path("ran").exists()


def test_the_steps_of_a_pickle_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_OPCODES", 100)
    (tmp_path / "x.pkl").write_bytes(b"\x80\2](" + b"]" * 101 + b"e.")
    with pytest.raises(UserError, match="more than 100 steps"):
        pickles.read(tmp_path / "x.pkl")


@pytest.mark.parametrize("name", list(HEADERS))
def test_a_header_that_claims_another_array_is_refused(tmp_path, name):
    (tmp_path / "x.npy").write_bytes(HEADERS[name])
    npz(tmp_path / "x.npz", {"images.npy": HEADERS[name]})
    for read, file in ((reading.npy, "x.npy"), (reading.npz, "x.npz")):
        with pytest.raises(UserError, match=file):
            read(tmp_path / file)
    with pytest.raises(UserError, match=r"x\.npy"):
        reading.npy(tmp_path / "x.npy", mapped=True)


@pytest.mark.parametrize("claimed", [3 << 30, 1000, 0])
def test_a_bomb_is_not_unfolded(tmp_path, claimed):
    """Whatever its directory says, no more than that is read."""
    start = npy_header("(8192, 32, 32, 3)")
    zeros(tmp_path / "x.npz", "images.npy", start, len(start) + 8192 * 3072)
    lie(tmp_path / "x.npz", claimed)
    with pytest.raises(UserError, match=r"x\.npz"):
        reading.npz(tmp_path / "x.npz")


def test_plain_arrays_of_every_kind_come_through(tmp_path):
    arrays = {"a": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "b": np.zeros((0, 3)),
              "c": np.float64(2.5), "d": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
              "e": np.array(["cat", "d"]), "f": np.array([True]), "g": np.arange(3, dtype=">i4")}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        found = reading.npz(tmp_path / "x.npz")
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
    assert list(reading.npz(tmp_path / "x.npz", "d", "none")) == ["d"]
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        for mapped in (False, True):
            found = reading.npy(tmp_path / f"{name}.npy", mapped=mapped)
            np.testing.assert_array_equal(found, array)
            assert found.dtype == array.dtype


@pytest.mark.parametrize("old", [False, True])
def test_torch_files_come_through(tmp_path, old):
    """As torch reads them: views, kinds of numbers, an optimiser's state."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    large = torch.arange(24.0).reshape(2, 3, 4)
    saved = [model.state_dict(), optimizer.state_dict(), {
        "turned": large.transpose(0, 2), "view": large[1], "half": large.half(),
        "bfloat": large.bfloat16(), "none": torch.empty(0, 3), "scalar": torch.tensor(3),
        "bool": torch.tensor([True]), "own": torch.nn.Parameter(large[0]), "size": large.shape,
        "plain": (1, "x", b"y", None, 2.5, 2**70)}]
    torch.save(saved, tmp_path / "x.pt", _use_new_zipfile_serialization=not old)
    assert same(torchfile.load(tmp_path / "x.pt"), saved)


def same(found: object, expected: object) -> bool:
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[k], expected[k]) for k in expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize(("length", "size", "stride"), [
    (1 << 35, (2, 2), (2, 1)), (-4, (2, 2), (2, 1)), (4, (64, 2), (2, 1)), (4, (-1, 2), (2, 1)),
    (4, (2**20, 2**15), (0, 0)), (3, (1, 1), (1, 1)), (5, (2, 2), (2, 1)), (4, (2, 2), (2, -1)),
])
def test_a_tensor_that_its_storage_does_not_hold_is_refused(tmp_path, length, size, stride):
    pair = [b"".join(map(long, numbers)) + b"\x86" for numbers in (size, stride)]
    torch_pickle(tmp_path / "x.pt", tensor_opcodes(length, *pair), **{"0": bytes(16)})
    with pytest.raises(UserError, match=r"x\.pt"):
        torchfile.load(tmp_path / "x.pt")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.symlink("/dev/zero", tmp_path / "zero")
    sparse(tmp_path / "hole", b"x", HUGE)
    for name, words in (("fifo", "no regular file"), ("zero", "no regular file"), ("", "no reg"),
                        ("none", "no such file"), ("hole", "claims .* bytes but holds")):
        for read in (reading.text, reading.npy, reading.npz, reading.safetensors, pickles.read,
                     torchfile.load):
            with pytest.raises(UserError, match=words):
                read(tmp_path / name)
        with pytest.raises(UserError, match=words), pictures.opened(tmp_path / name):
            pass


def test_pictures_that_are_too_large_or_programs_are_refused(tmp_path):
    png(tmp_path / "x.png", 10_000, 9_000)
    with pytest.raises(UserError, match="10000x9000, too large"), \
            pictures.opened(tmp_path / "x.png"):
        pass
    Image.new("RGB", (8, 8)).save(tmp_path / "y.eps")
    with pytest.raises(UserError, match="not a readable image"), \
            pictures.opened(tmp_path / "y.eps"):
        pass


@pytest.mark.parametrize(("name", "header", "data"), [
    ("a", {"a": {"dtype": "F8_E4M3", "shape": [64], "data_offsets": [0, 64]}}, bytes(64)),
    ("a", {"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, HUGE]}}, bytes(64)),
    ("a", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0\0\xc0\x7f"),
    ("a", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0\0\x80\x7f"),
    ("a", [], b""), ("a", {"a": 1}, b""),
])
def test_safetensors_that_are_no_weights_are_refused(tmp_path, name, header, data):
    safetensors(tmp_path / "x.safetensors", header, data)
    with pytest.raises(UserError, match=r"x\.safetensors"):
        reading.safetensors(tmp_path / "x.safetensors")


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [{"b": 1, "b": 2}]}')
    with pytest.raises(UserError, match=r"x\.json is damaged"):
        import_ddpm.read_config(tmp_path / "x.json")
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header = f"{{{entry}, {entry.replace('F32', 'I32')}}}".encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(UserError, match=r"not a readable \.safetensors"):
        reading.safetensors(tmp_path / "x.safetensors")


def test_brackets_inside_each_other_are_bounded(tmp_path):
    for text in ("[" * 100_000, '{"a":' * 100_000, "[" + "9" * 10_000 + "]"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match=r"x\.json is damaged"):
            import_ddpm.read_config(tmp_path / "x.json")
