"""Four processes on two simulated nodes, launched by the SLURM script with a fake srun and by the deepspeed launcher.

Ranks follow the order of the nodes, and a pipeline that fits on one node stays on it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ENVIRONMENT, ROOT, TIME_LIMIT

WRITE_RANKS = str(Path(__file__).with_name("write_ranks.py").relative_to(ROOT))
SRUN = """#!/usr/bin/env bash
[ "$1" = --kill-on-bad-exit=1 ] && shift
for node in 0 1; do NODE=$node SLURM_NODEID=$node SLURM_NNODES=2 SLURM_GPUS_ON_NODE=2 "$@" & ids="$ids $!"; done
for id in $ids; do wait $id || exit 1; done
"""


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_all(*commands, **environment):
    """Runs the commands concurrently; on failure or timeout, kills their process groups."""
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, **environment, **own},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for command, own in commands
    ]
    try:
        outputs = [process.communicate(timeout=TIME_LIMIT)[0] for process in started]
    finally:
        for process in started:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert all(process.returncode == 0 for process in started), "\n".join(outputs)[-4000:]


def check_ranks(file):
    for ranks, report in json.loads(file.read_text()).items():
        rows, ranks = report["rows"], int(ranks)
        assert [row["rank"] for row in rows] == [0, 1, 2, 3]
        assert [row["node"] for row in rows] == ["0", "0", "1", "1"] and [row["local"] for row in rows] == [0, 1, 0, 1]
        assert [(row["pipeline"], row["index"]) for row in rows] == [divmod(rank, ranks) for rank in range(4)]
        for row in rows:
            if ranks == 2:
                assert {rows[member]["node"] for member in row["members"]} == {row["node"]}
        assert len(report["mapping"].splitlines()) == 4 // ranks


def test_slurm(tmp_path, port, relay):
    tools = {
        "srun": SRUN,
        "scontrol": '#!/usr/bin/env bash\n[ "$*" = "show hostnames here,there" ] && echo 127.0.0.1\n',
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with relay(WRITE_RANKS) as (script, environment):
        run_all(
            (["bash", "scripts/launch/slurm.sbatch", script, str(tmp_path / "ranks.json"), "2", "4"], environment),
            PYTHON=sys.executable,
            PORT=port,
            PATH=f"{tmp_path}:{os.environ['PATH']}",
            SLURM_JOB_NODELIST="here,there",
        )
    check_ranks(tmp_path / "ranks.json")


def test_deepspeed_with_a_hostfile(tmp_path, port, relay):
    from deepspeed.launcher.runner import encode_world_info, fetch_hostfile

    assert fetch_hostfile(str(ROOT / "scripts" / "launch" / "hostfile")) == {"node1": 8, "node2": 8}
    (tmp_path / "hostfile").write_text(
        (ROOT / "scripts" / "launch" / "hostfile").read_text().replace("slots=8", "slots=2")
    )
    nodes = {name: list(range(slots)) for name, slots in fetch_hostfile(str(tmp_path / "hostfile")).items()}
    launch = [
        sys.executable,
        "-m",
        "deepspeed.launcher.launch",
        f"--world_info={encode_world_info(nodes)}",
        "--master_addr=127.0.0.1",
        f"--master_port={port}",
    ]
    with relay(WRITE_RANKS) as (script, environment):
        arguments = [script, str(tmp_path / "ranks.json"), "2", "4"]
        run_all(
            *(([*launch, f"--node_rank={node}", *arguments], {"NODE": str(node), **environment}) for node in range(2))
        )
    check_ranks(tmp_path / "ranks.json")
