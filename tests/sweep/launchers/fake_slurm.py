"""Stands in for SLURM's commands: runs a submitted script's array tasks on this machine, at once.

Its state is the folder ``FAKE_SLURM``: the scripts, one file with the state of each task, and, to submit without
running anything, a file named ``hold``.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ["FAKE_SLURM"])
STATES = HOME / "states"


def sbatch(script: str) -> None:
    if (HOME / "full").exists():
        sys.exit("sbatch: error: invalid partition specified: gpu")
    number = 4242 + len(list(HOME.glob("*.sh")))
    text = Path(script).read_text()
    (HOME / f"{number}.sh").write_text(text)
    array = re.search(r"#SBATCH --array=0-(\d+)%", text)
    for task in [f"{number}_{index}" for index in range(int(array[1]) + 1)] if array else [str(number)]:
        (STATES / task).write_text("PENDING")
        if not (HOME / "hold").exists():
            with (HOME / f"{task}.out").open("w") as out:
                subprocess.Popen(
                    [sys.executable, __file__, "task", task], stdout=out, stderr=out, start_new_session=True
                )
    print(f"Submitted batch job {number}")


def task(name: str) -> None:
    """Runs one task, and again for as long as it has itself requeued."""
    number, _, index = name.partition("_")
    variables = {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    if index:
        variables |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index}
    requeued = HOME / f"requeue-{name}"
    while True:
        (STATES / name).write_text("RUNNING")
        code = subprocess.call(["bash", str(HOME / f"{number}.sh")], env={**os.environ, **variables})
        if not requeued.exists():
            break
        requeued.unlink()
    (STATES / name).write_text("FAILED" if code else "COMPLETED")


def srun(*arguments: str) -> None:
    command = shlex.split(" ".join(arguments))
    start = command.index("-u") - 1  # after srun's own options: python -u -m submitit...
    os.execv(command[start], command[start:])


def sacct(*_: str) -> None:
    print("JobID|State|NodeList")
    for state in STATES.iterdir():
        print(f"{state.name}|{state.read_text()}|node1")


def scontrol(_: str, name: str) -> None:
    (HOME / f"requeue-{name}").touch()


{"sbatch": sbatch, "task": task, "srun": srun, "sacct": sacct, "scontrol": scontrol}[sys.argv[1]](*sys.argv[2:])
