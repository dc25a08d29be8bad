"""What a run computes with: the same on every processor, and set anew by every resolve."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import CONFIGS, ROOT, run_command, succeed

import evaluate
from core import device, files, records
from core.device import Device, DeviceSettings, resolve
from core.errors import UserError
from core.request import parse
from poisons.__main__ import main as poison_main

CPU = DeviceSettings(device="cpu")
GPU = Device("cuda:0", "bf16", False, 1, False, "auto", True)


@pytest.fixture(params=[False, True], ids=["without AMX", "with AMX"])
def amx(request, monkeypatch):
    """A processor that says that it has AMX, and one that has not; only the answer is forced."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: request.param)
    device._said.clear()
    return request.param


def test_auto_is_fp32_on_every_cpu(amx):
    found = resolve(CPU)
    assert found.precision == "fp32"
    assert torch.get_float32_matmul_precision() == "highest"
    with found.autocast():
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
    assert resolve(DeviceSettings("cpu", "bf16")).precision == "bf16"       # asked for


def test_one_line_says_what_would_be_faster(amx, capsys, few_path, tmp_path):
    """Where networks compute and nothing was asked for; once, and the record is the same."""
    keys = [CONFIGS / "learners/cpu12.yaml", f"data={few_path}", "standard.width=4",
            "standard.epochs=1", "standard.batch_size=32", "--limit", 64]
    records_of = [records.load(succeed(evaluate.main, *keys, f"out={tmp_path / name}", *words))
                  for name, words in (("asked", ["precision=fp32"]), ("auto", []))]
    assert records_of[0]["accuracy_last"] == records_of[1]["accuracy_last"]
    assert [record["device"]["precision"] for record in records_of] == ["fp32", "fp32"]

    device._said.clear()
    outcomes = {name: run_command(evaluate.main, *keys, "seed=1", f"out={tmp_path / name}2", *words)
                for name, words in (("asked", ["precision=fp32"]), ("auto", []))}
    assert outcomes["asked"].stderr.count("would be faster") == 0
    assert outcomes["auto"].stderr.count("precision=bf16 would be faster") == amx
    closed = run_command(poison_main, "method=lsp", f"data={few_path}", "--smoke", "--limit", 64)
    assert closed.status == 0
    assert "faster" not in closed.stderr                    # it has no network


def test_determinism_is_set_both_ways():
    resolve(dataclasses.replace(CPU, deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    resolve(CPU)
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_switches_of_the_process_are_those_of_the_last_settings(monkeypatch):
    """fp32 is fp32 to the last bit; what asks for less may use a GPU's tensor cores. Where the
    fastest of several kernels is looked for, two runs differ."""
    cudnn = torch.backends.cudnn
    for name in ("allow_tf32", "benchmark"):
        monkeypatch.setattr(cudnn, name, getattr(cudnn, name))      # as before, afterwards
    for precision, deterministic, threads in (("bf16", False, 2), ("fp32", True, 1),
                                              ("bf16", True, 3), ("fp32", False, 1)):
        found = resolve(DeviceSettings("cpu", precision, deterministic=deterministic,
                                       threads=threads))
        exact = precision == "fp32"
        assert torch.get_float32_matmul_precision() == ("highest" if exact else "high")
        assert cudnn.allow_tf32 == (not exact)
        assert cudnn.benchmark == (not deterministic)
        assert torch.get_num_threads() == found.threads == threads


def test_no_run_waits_for_a_compiler_that_it_does_not_use():
    """torch imports it, some seconds, when it is told of determinism."""
    code = ("import sys; from core.device import DeviceSettings, resolve; "
            "resolve(DeviceSettings('cpu')); print('torch._inductor' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          check=False)
    assert done.stdout == "False\n", done.stderr


def test_cublas_is_told_before_cuda_starts():
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(("rank", "gpus", "number"), [(1, 8, 1), (3, 1, 0), (5, 4, 1)])
def test_a_launcher_may_show_each_process_its_own_gpu(monkeypatch, rank, gpus, number):
    """Then all have number 0: LOCAL_RANK is larger than what there is to see."""
    for key, value in (("WORLD_SIZE", 8), ("RANK", rank), ("MASTER_ADDR", "x"),
                       ("LOCAL_RANK", rank)):
        monkeypatch.setenv(key, str(value))
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    found = resolve(DeviceSettings("cuda", "fp32", "false"))
    assert found.name == f"cuda:{number}"
    assert chosen == [torch.device("cuda", number)]


def test_compiling_without_a_compiler_is_a_sentence(monkeypatch):
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"compile: there is no C compiler here .* compile=false"):
        resolve(dataclasses.replace(CPU, compile="true"))
    assert not resolve(CPU).compile


# --- what a record says ----------------------------------------------------------------------


def test_a_record_names_instructions_and_nothing_of_the_advice(amx):
    about = resolve(CPU).as_record()
    assert about["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert not any("faster" in str(entry) for entry in about.items())


def test_a_record_of_a_gpu_names_cuda_cudnn_and_the_driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(device, "nvidia_driver", lambda: "580.1")
    about = GPU.as_record()
    assert about["hardware"] == "H100"
    assert {"cuda", "cudnn"} <= about.keys()
    assert about["driver"] == "580.1"
    json.dumps(about)


@pytest.mark.parametrize(("library", "expected"), [
    ((0, 0), "580.1"), ((9, 0), None), ((0, 9), None), (None, None)])
def test_the_driver_is_asked_for_or_unknown(monkeypatch, library, expected):
    """Of a library that answers, that fails in either call, and that is not there."""
    class Library:
        def __init__(self, name):
            if library is None:
                raise OSError(name)

        def nvmlInit_v2(self):
            return library[0]

        def nvmlSystemGetDriverVersion(self, text, length):
            text.value = b"580.1"
            return library[1]

    monkeypatch.setattr(device.ctypes, "CDLL", Library)
    assert device.nvidia_driver() == expected


def test_already_done_says_when_another_precision_was_asked_for(few_path, tmp_path):
    keys = ["method=lsp", f"data={few_path}", f"out={tmp_path / 'lsp'}"]
    succeed(poison_main, *keys, "precision=bf16")
    for words, said in ((["precision=fp32"], ", made with precision=bf16, not fp32: another out= "
                         "makes it anew\n"), (["precision=bf16"], "\n"), ([], "\n")):
        outcome = run_command(poison_main, *keys, *words)
        assert outcome.status == 0
        assert outcome.stderr == f"{tmp_path / 'lsp'} is already done{said}"
    plan = run_command(poison_main, *keys, "precision=fp32", "--dry-run").stdout
    assert "already done, made with precision=bf16, not fp32" in plan

    meta = json.loads((tmp_path / "lsp" / "meta.json").read_text())     # an older one says nothing
    del meta["device"]
    files.write_sealed(tmp_path / "lsp" / "meta.json", meta)
    assert "made with" not in run_command(poison_main, *keys, "precision=fp32").stderr


@pytest.mark.parametrize(("method", "preset", "name"), [
    ("jcdp", "released", "purify"), ("ddpm", "avatar_released", "purify"),
    ("ddpm", "released", "train_ddpm")])
def test_released_presets_are_fp32(method, preset, name):
    """In bf16 6 % of JCDP's pixels are a grey level off what the released code gives."""
    request = parse([f"{CONFIGS}/purifiers/{method}.yaml", f"preset={preset}"], "", name)
    assert request.device.precision == "fp32"


# --- where nothing can run -------------------------------------------------------------------


@pytest.mark.parametrize(("change", "said"), [
    ("sys.modules['fcntl'] = None", "error: Linux and macOS are supported"),
    ("sys.version_info = (3, 10)", "error: Python 3.11 or later is needed"),
])
def test_the_first_import_says_which_systems_are_supported(change, said):
    done = subprocess.run([sys.executable, "-c", f"import sys; {change}; import core.errors"],
                          capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
