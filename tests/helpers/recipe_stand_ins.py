"""Stand-ins for the commands of docs/distributed.md: `python recipe_stand_ins.py NAME ARGUMENTS`. Jobs run one after the other.

baize     adds how it was called to the file `called`
sbatch    runs a script once for each task of its array, or the command of --wrap, and prints a job's number
srun      runs its command
parallel  runs a command for each argument after `:::`, through a shell, here or through ssh
ssh       runs its command in a shell here, as the host that it names
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from itertools import cycle
from pathlib import Path


def baize(arguments: list[str]) -> None:
    noted = {
        "arguments": arguments,
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "host": os.environ.get("STAND_IN_HOST"),
    }
    with Path("called").open("a") as file:
        file.write(json.dumps(noted) + "\n")


def sbatch(arguments: list[str]) -> None:
    if "--wrap" in arguments:
        subprocess.run(["sh", "-c", arguments[arguments.index("--wrap") + 1]], check=True)
    else:
        script = arguments[-1]
        found = re.search(r"^#SBATCH --array=(\d+)-(\d+)$", Path(script).read_text(), re.MULTILINE)
        first, last = (int(each) for each in found.groups()) if found else (0, 0)
        for task in range(first, last + 1):
            given = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_CPUS_PER_TASK": "8"}
            subprocess.run(["bash", script], check=True, env={**os.environ, **given})
    if "--parsable" in arguments:
        print("17;cluster")


def srun(arguments: list[str]) -> None:
    command = [each for each in arguments if each != f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}"]
    subprocess.run(command, check=True)


def parallel(arguments: list[str]) -> None:
    end = arguments.index(":::")
    values, given = arguments[end + 1 :], arguments[:end]
    settings = {}
    while given[0].startswith("--"):
        name = given.pop(0)
        if name != "--line-buffer":
            settings[name] = given.pop(0)
    hosts = cycle(Path(settings["--sshloginfile"]).read_text().split()) if "--sshloginfile" in settings else None
    for number, value in enumerate(values):
        # the command's words are joined as they are, and read by the job's shell
        slot = number % int(settings["--jobs"]) + 1
        command = " ".join(given).replace("{%}", str(slot)).replace("{}", shlex.quote(value))
        if hosts is not None:
            place = shlex.quote(settings["--workdir"])
            subprocess.run(["ssh", next(hosts), f"cd {place} && {command}"], check=True)
        else:
            subprocess.run(["sh", "-c", command], check=True)


def ssh(arguments: list[str]) -> None:
    host, *command = (each for each in arguments if each != "--")
    subprocess.run(["sh", "-c", " ".join(command)], check=True, env={**os.environ, "STAND_IN_HOST": host})


if __name__ == "__main__":
    {"baize": baize, "sbatch": sbatch, "srun": srun, "parallel": parallel, "ssh": ssh}[sys.argv[1]](sys.argv[2:])
