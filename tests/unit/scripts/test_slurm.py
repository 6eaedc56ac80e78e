"""scripts/launch/slurm.sbatch under stand-ins for sbatch, srun and scontrol: its own example, in a fresh folder."""

import os
import re
import shlex
import subprocess
import sys

from breviary.runtime.checkout import ROOT

SCRIPT = ROOT / "scripts" / "launch" / "slurm.sbatch"
# As SLURM: takes options from the command line, runs a copy of the script, and makes no folder for the log.
SBATCH = r"""#!/usr/bin/env bash
while [[ "$1" == --* ]]; do
    case "$1" in --nodes) export SLURM_NNODES=$2;; --gpus-per-node) export SLURM_GPUS_ON_NODE=$2;; esac
    shift 2
done
log=$(sed -n 's/^#SBATCH --output=//p' "$1")
cp "$1" "$SPOOL/slurm_script" && shift
SLURM_JOB_ID=7 SLURM_JOB_NODELIST=here,there bash "$SPOOL/slurm_script" "$@" > "${log//%j/7}" 2>&1
"""
SRUN = r"""#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" || exit 1; done
"""
SCONTROL = '#!/usr/bin/env bash\n[ "$*" = "show hostnames here,there" ] && printf "here\\nthere\\n"\n'


def example():
    """The words of the command in the head of the script."""
    head = "\n".join(line[1:] for line in SCRIPT.read_text().splitlines() if line.startswith("# "))
    [command] = re.findall(r"^\s*sbatch (?:.*\\\n)*.*$", head, re.MULTILINE)
    return shlex.split(command.replace("\\\n", " "))


def test_the_example_starts_one_torchrun_for_each_node(tmp_path):
    tools = {"bin/sbatch": SBATCH, "bin/srun": SRUN, "bin/scontrol": SCONTROL}
    tools[".venv/bin/python"] = '#!/usr/bin/env bash\necho "$@"\n'
    for name, text in tools.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / "spool").mkdir()
    words = example()
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SPOOL": f"{tmp_path}/spool"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "")
    arguments = words[words.index("scripts/launch/slurm.sbatch") + 1 :]
    assert arguments[0] == "train.py"
    for node, line in enumerate((tmp_path / "slurm-7.log").read_text().splitlines()):
        assert line.split() == [
            *("-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(node), "--nproc_per_node", "8"),
            *("--master_addr", "here", "--master_port", "29500", *arguments),
        ]
    assert node == 1


# torchrun with one rank, which writes the signals it gets and ends at SIGTERM.
TORCHRUN = f"""#!/usr/bin/env bash
{sys.executable} -S -c '
import pathlib, signal, sys, time
got = pathlib.Path("got")
signal.signal(signal.SIGUSR1, lambda *_: got.write_text(got.read_text() + "USR1 "))
signal.signal(signal.SIGTERM, lambda *_: (got.write_text(got.read_text() + "TERM"), sys.exit(0)))
got.write_text("")
while True:
    time.sleep(9)
' &
wait $!
"""
# The first process of a task gets the signals of SLURM, and no other.
SIGNALLING = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
SLURM_NODEID=0 SLURM_NNODES=1 SLURM_GPUS_ON_NODE=1 "$@" &
until [ -e got ]; do sleep 0.01; done
kill -USR1 $! && until [ "$(cat got)" = "USR1 " ]; do sleep 0.01; done
kill -TERM $!
wait $!
"""


def test_signals_of_slurm_reach_the_ranks_and_the_exit_code_is_theirs(tmp_path):
    for name, text in {"srun": SIGNALLING, "scontrol": SCONTROL, "python": TORCHRUN}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "here,there", "PYTHON": "./python"}
    done = subprocess.run(
        ["bash", SCRIPT, "train.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr, (tmp_path / "got").read_text()) == (0, "", "USR1 TERM")
    assert "#SBATCH --signal=USR1@" in SCRIPT.read_text()
