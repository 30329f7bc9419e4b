"""A two-node SLURM on this machine: Debian's ``slurm-wlm`` and ``munge``, started as root in a directory of its own.

Own key, own socket, own ports, own configuration: it neither needs nor disturbs a SLURM or a munge that is there already.
What is started is stopped by its process id.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services import require

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
NODES = ("n1", "n2")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"}
CONF = """\
ClusterName=c{name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
StateSaveLocation={place}/state
SlurmctldPidFile={place}/slurmctld.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdSpoolDir={place}/spool/%n
SlurmdPidFile={place}/slurmd.%n.pid
SlurmdLogFile={place}/slurmd.%n.log
SlurmctldParameters=enable_configless
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,bf_min_age_reserve=0,bf_resolution=1
CompleteWait=0
KillWait=30
MinJobAge=3600
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=2000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


@dataclass
class Cluster:
    """A running cluster; commands go through :meth:`run`."""

    place: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What a SLURM command needs to find this cluster and no other."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        return {**own, "PATH": SYSTEM_PATH, "SLURM_CONF": str(self.place / "slurm.conf")}

    def run(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, *, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the user's on the login node."""
        done = subprocess.run(
            [str(part) for part in command],
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def sbatch(self, *command: object, **environment: object) -> str:
        """Submit a job; its id."""
        settings = {key: str(value) for key, value in environment.items()}
        return self.run(["sbatch", "--parsable", *map(str, command)], settings).stdout.strip()

    def state(self, job: str) -> str:
        """State of a job, or of one task of an array (``12_3``)."""
        shown = self.run(["scontrol", "--oneliner", "show", "job", job]).stdout
        states = {word.partition("=")[2] for word in shown.split() if word.startswith("JobState=")}
        return "+".join(sorted(states))

    def wait(self, job: str, seconds: float = 90) -> str:
        """The state in which a job, or all tasks of an array, ended."""
        until(lambda: set(self.state(job).split("+")) <= ENDED, seconds, lambda: self.describe(job))
        return self.state(job)

    def describe(self, job: str) -> str:
        """For the message of a test that fails."""
        return self.run(["scontrol", "show", "job", job], check=False).stdout

    def alive(self) -> bool:
        """Whether the controller answers and both nodes take jobs."""
        shown = self.run(["sinfo", "-h", "-N", "-o", "%T"], check=False)
        return shown.returncode == 0 and shown.stdout.split() == ["idle"] * len(NODES)

    def start(self, *command: str) -> None:
        with (self.place / f"{Path(command[0]).name}-{len(self.daemons)}.out").open("wb") as log:
            self.daemons.append(
                subprocess.Popen(
                    command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            )

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        found = sorted([*self.place.glob("*.log"), *self.place.glob("*.out")])
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in found)


def until(holds: Callable[[], object], seconds: float, describe: Callable[[], str]) -> None:
    """Wait until something holds; a failure with a description if it does not in time."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {describe()}"
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on; all are held until the last is known, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def two_nodes() -> Iterator[Cluster]:
    """Start the cluster, stop it afterwards; skips where SLURM is not installed."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SYSTEM_PATH) is None]
    require(not missing, f"SLURM is not installed ({', '.join(missing)}): apt-get install slurm-wlm munge")
    require(os.geteuid() == 0, "a SLURM cluster for tests is started as root")
    # Not under pytest's directories: the path of a socket has at most 107 characters.
    place = Path(tempfile.mkdtemp(prefix="slurm-"))
    place.chmod(0o755)
    cluster = Cluster(place)
    try:
        _start(cluster)
        until(cluster.alive, 30, cluster.logs)
        yield cluster
    finally:
        _stop(cluster)
        shutil.rmtree(place, ignore_errors=True)


def _start(cluster: Cluster) -> None:
    place = cluster.place
    key = place / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    for name in ("state", "spool"):
        (place / name).mkdir()
    conf = CONF.format(name=secrets.token_hex(4), host=socket.gethostname(), place=place, ports=free_ports(3))
    (place / "slurm.conf").write_text(conf)
    path = SYSTEM_PATH
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "seed"}
    options = [f"--{name}={place / file}" for name, file in files.items()]
    cluster.start(
        shutil.which("munged", path=path) or "",
        "--foreground",
        "--force",
        "--num-threads=2",
        f"--log-file={place / 'munge.log'}",
        *options,
    )
    until((place / "munge.socket").exists, 15, cluster.logs)
    cluster.start(shutil.which("slurmctld", path=path) or "", "-D", "-f", str(place / "slurm.conf"))
    for node in NODES:
        cluster.start(
            shutil.which("slurmd", path=path) or "", "-D", "-N", node, "-f", str(place / "slurm.conf")
        )


def _stop(cluster: Cluster) -> None:
    """End jobs, then daemons, the last started first."""
    with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
        jobs = cluster.run(["squeue", "-h", "-o", "%A"], check=False).stdout.split()
        if jobs:
            cluster.run(["scancel", "--signal=KILL", "--full", *jobs], check=False)
            cluster.run(["scancel", *jobs], check=False)
            idle = lambda: not cluster.run(["squeue", "-h"], check=False).stdout.strip()  # noqa: E731
            until(idle, 15, cluster.logs)
    for daemon in reversed(cluster.daemons):
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    for pid in _left(cluster):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _left(cluster: Cluster) -> list[int]:
    """Processes of jobs that outlived the cluster: those whose environment names its configuration."""
    wanted = f"SLURM_CONF={cluster.place / 'slurm.conf'}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]
