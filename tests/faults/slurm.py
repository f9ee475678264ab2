"""A SLURM of one node on loopback, with folders, ports and keys of its own: Debian's munged, slurmctld and slurmd."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.faults.processes import Family, wait_until

_CONFIG = """
ClusterName=rdpm
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
KillWait=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_DAEMONS = ("munged", "slurmctld", "slurmd")


class Slurm:
    """`environment` lets `sbatch` and the others find it; what its jobs start belongs to `family`."""

    def __init__(self, logs: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rdpm-slurm-"))  # short: munge makes a socket in it
        self.folder.chmod(0o755)  # munged wants a socket that others could reach
        self.family = Family(logs / "slurm.log")
        self.environment = {**os.environ, "SLURM_CONF": f"{self.folder}/slurm.conf", **self.family.mark}

    def start(self) -> None:
        """Start the daemons, and wait until the node is idle. Skips the test where they are not installed."""
        missing = [name for name in _DAEMONS if not shutil.which(name)]
        if missing or os.getuid():
            pytest.skip(f"needs root and Debian's slurm-wlm ({', '.join(missing) or 'not root'})")
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(0o400)
        key.write_bytes(os.urandom(1024))
        with socket.socket() as first, socket.socket() as second:
            for each in (first, second):
                each.bind(("127.0.0.1", 0))
            ports = [each.getsockname()[1] for each in (first, second)]
        host = socket.gethostname().split(".")[0]
        (self.folder / "slurm.conf").write_text(_CONFIG.format(host=host, folder=self.folder, ports=ports))
        paths = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "seed", "log")]
        self._daemon(["munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *paths])
        wait_until(lambda: (self.folder / "munge.socket").exists(), 10, "munged")
        self._daemon(["slurmctld", "-D"])
        self._daemon(["slurmd", "-D", "-N", host])
        wait_until(lambda: "idle" in self.run("sinfo", "--noheader"), 30, f"an idle node: {self.family.printed()}")

    def _daemon(self, command: list[str]) -> None:
        self.family.start(command, self.environment, self.folder)

    def run(self, *command: str) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr

    def submit(self, script: Path) -> str:
        """The number of the job that runs a script."""
        return self.run("sbatch", "--parsable", str(script)).strip()

    def state(self, job: str) -> str:
        """State of a job, in SLURM's words."""
        return self.run("squeue", "--noheader", "--states=all", "--format=%T", "--jobs", job).strip()

    def close(self) -> None:
        """End the jobs and the daemons."""
        if (self.folder / "slurmd.pid").exists():
            self.run("scancel", "--user=root")
            wait_until(lambda: not self.run("squeue", "--noheader").strip(), 30, "the end of the jobs")
        self.family.close()
        shutil.rmtree(self.folder, ignore_errors=True)
