"""scripts/slurm.sh, with an sbatch and a Python that only note what they are given. A real SLURM is
in scripts/slurm_test.sh."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# What a name does in place of the program. A Python that is asked to look at a table may refuse.
PROGRAMS = {
    "sbatch": 'printf "%s\\n" "$@" >options\ncat >job\necho "12;cluster"\n',
    "sinfo": "echo gpu:a100:4\n",
    "python": 'case "$*" in\n'
              '-c*) echo "$PWD/bin/python" ;;\n'
              '*--dry-run) echo "$*" >plan; [ ! -e refuses ] || exit 1 ;;\n'
              '*--worker) echo "$$ ${UNLEARNABLE_STARTER-none} $OMP_NUM_THREADS $*" ;;\n'
              '*--status) echo "status of $*" ;;\n'
              "esac\n",
}


# all that the scripts need beside them: a login node has a real sbatch in /usr/bin
TOOLS = ("bash", "cat", "mkdir", "dirname", "basename", "grep")


def submit(*words: str, without: str = "") -> subprocess.CompletedProcess:
    """`bash scripts/slurm.sh WORDS` in a copy here, without one of the programs."""
    Path("bin").mkdir(exist_ok=True)
    for name, text in PROGRAMS.items():
        if name != without:
            Path("bin", name).write_text(f"#!/bin/sh\n{text}")
            Path("bin", name).chmod(0o755)
    for name in TOOLS:
        if not Path("bin", name).is_symlink():
            Path("bin", name).symlink_to(shutil.which(name))
    Path("scripts").mkdir(exist_ok=True)
    for name in ("slurm.sh", "setup.sh"):
        shutil.copy(ROOT / "scripts" / name, "scripts")
    return subprocess.run(["bash", "scripts/slurm.sh", *words], capture_output=True, text=True,
                          env={**os.environ, "PATH": str(Path("bin").absolute()),
                               "INSTALL": "no", "VIRTUAL_ENV": sys.prefix})


def test_each_word_goes_where_it_belongs():
    done = submit("le_table3", "fig4", "--quick", "--time", "10", "--rows", "em,lsp", "--seeds=0",
                  "data=my folder", "--array", "24%8", "--gres=gpu:1", "-p", "long", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    options = Path("options").read_text().splitlines()
    assert options[-5:] == ["--time", "10", "--gres=gpu:1", "-p", "long"]   # the last of two counts
    assert {"--parsable", "--job-name=le_table3", "--array=1-24%8", "--requeue",
            "--signal=B:INT@300", "--open-mode=append",
            "--output=runs/logs/slurm-%A_%a.log"} == {*options[:-5]}
    line = ("scripts/run_table.py le_table3 fig4 --quick "
            "--rows em,lsp --seeds=0 data=my\\ folder --jobs 2")
    assert Path("job").read_text().endswith(f"{line} --worker\n")
    assert done.stdout == (f"job 12; watch: python {line} --status   logs: "
                           "runs/logs/slurm-12_*.log   stop: scancel 12\n")
    assert Path("runs/logs").is_dir()           # SLURM makes no folder for a log
    assert "note:" not in done.stderr


@pytest.mark.parametrize(("given", "asked"), [
    ([], "1-4"), (["--array", "3"], "1-3"), (["-a", "2"], "1-2"), (["--array=0-7:2"], "0-7:2")])
def test_arrays(given, asked):
    assert "note: there are GPUs and nothing asks for one" in submit("le_table3", *given).stderr
    assert f"--array={asked}\n" in Path("options").read_text()


def test_a_signal_to_the_job_is_one_to_the_worker():
    """Bash would wait for its command before it looked at a signal; and the process that a worker
    would end with is one of the host that the job was sent from."""
    submit("le_table3")
    variables = {"PATH": os.environ["PATH"], "UNLEARNABLE_STARTER": "1234",
                 "SLURM_CPUS_ON_NODE": "6"}
    job = subprocess.Popen(["bash", "job"], stdout=subprocess.PIPE, text=True, env=variables)
    number, starter, threads, *line = job.communicate(timeout=60)[0].split()
    assert (int(number), starter, line[-1]) == (job.pid, "none", "--worker")
    assert threads == "6"               # also where SLURM does not bind a task to its CPUs


@pytest.mark.parametrize(("words", "error"), [
    ([], "name a table"), (["--quick"], "name a table"), (["data=digits"], "name a table"),
    (["le_table3", "--array"], "how many tasks")])
def test_mistakes_in_the_line(words, error):
    done = submit(*words)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert error in done.stderr
    assert not Path("options").exists()


def test_a_mistake_in_the_table_is_said_before_anything_is_submitted():
    Path("refuses").touch()
    assert submit("le_table3", "--rows", "nobody").returncode == 1
    assert "--rows nobody" in Path("plan").read_text()
    assert not Path("options").exists()
    assert "sbatch" not in submit("le_table3", "--rows", "nobody", without="sbatch").stderr


def test_without_slurm():
    done = submit("le_table3", without="sbatch")
    assert done.returncode == 1
    assert done.stderr.startswith("error: sbatch is not in PATH")
    assert "bash scripts/table.sh le_table3 --jobs N" in done.stderr


def test_looking_submits_nothing():
    assert submit("le_table3", "--status").stdout.startswith("status of scripts/run_table.py")
    assert submit("le_table3", "--dry-run").returncode == 0
    assert not Path("options").exists()
