"""A real Slurm on this machine, in a temporary folder and on free ports, for tests and benchmarks.

No root, no systemd, no munge: slurmctld and one slurmd per node run as the current user with
`AuthType=auth/none`. GPUs are faked in gres.conf (Slurm sets CUDA_VISIBLE_DEVICES as with real ones). With
`accounting=True` a slurmdbd on a MariaDB in the same folder is added. Everything is stopped by pid.

    with Cluster(tmp_path, nodes=3) as cluster:
        cluster.run("sinfo")
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

PACKAGES = "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge"
ACCOUNTING_PACKAGES = "slurmdbd slurm-wlm-mysql-plugin mariadb-server"
SBIN = "/usr/sbin:/sbin"

SLURM_CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
SlurmctldPort={port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
{gathering}
MpiDefault=none
SwitchType=switch/none
SelectType=select/{select}
SelectTypeParameters={consumable}
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout={node_timeout}
MessageTimeout=5
KillWait=5
MinJobAge=600
DefMemPerCPU=500
GresTypes=gpu
MailProg=/bin/true
{accounting}
"""
PARTITIONS = """\
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=5 PreemptMode=off
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=warned Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=off
PartitionName=short Nodes=ALL MaxTime=10 State=UP PriorityTier=5 PreemptMode=off
"""
GATHER_NOTHING = "JobAcctGatherType=jobacct_gather/none"
GATHER_AND_KILL = (
    "JobAcctGatherType=jobacct_gather/linux\nJobAcctGatherFrequency=1\nJobAcctGatherParams=OverMemoryKill"
)


def missing_programs(*, accounting: bool = False) -> str | None:
    """What must be installed before a cluster can start, as a sentence; None if everything is there."""
    programs = ["slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun"]
    programs += ["slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db"] if accounting else []
    missing = [name for name in programs if find_program(name) is None]
    packages = f"{PACKAGES} {ACCOUNTING_PACKAGES}" if accounting else PACKAGES
    return (
        f"{', '.join(missing)} missing: apt-get install -y --no-install-recommends {packages}"
        if missing
        else None
    )


def find_program(name: str) -> str | None:
    """A program, also in the folders of system programs."""
    return shutil.which(name) or shutil.which(name, path=SBIN)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the system hands out to clients."""
    ports: list[int] = []
    for port in random.sample(range(20_000, 32_000), 12_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError("no free ports")


def wait_for(condition: Callable[[], Any], timeout: float, what: str, interval: float = 0.2) -> Any:
    """Wait until a condition holds and return its value; fail with a sentence if it does not."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:.0f} s in vain for: {what}")
        time.sleep(interval)


class Cluster:
    """A running Slurm; also a context manager."""

    def __init__(
        self, folder: Path, nodes: int = 1, *, accounting: bool = False, kill_over_memory: bool = False,
        gpus: int = 2, cpus: int = 2, node_prefix: Sequence[str] = (), node_timeout: int = 300,
        name: str = "test", select: str = "cons_tres",
    ) -> None:  # fmt: skip
        self.folder = folder
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.accounting = accounting
        self.kill_over_memory = kill_over_memory
        self.gpus, self.cpus = gpus, cpus
        self.node_timeout = node_timeout
        self.name, self.select = name, select
        self.node_prefix = list(node_prefix)
        self.ports = free_ports(nodes + 2)
        self.started: list[psutil.Process] = []

    @property
    def environment(self) -> dict[str, str]:
        """Environment for clients of this cluster."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        return {**kept, "SLURM_CONF": str(self.conf)}

    @property
    def conf(self) -> Path:
        return self.folder / "etc" / "slurm.conf"

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Write the configuration, start all daemons and wait until every node is idle."""
        for name in ("etc", "state", "log", "run", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._configure()
        if self.accounting:
            self._start_accounting()
        self.start_controller("-i")
        for node in self.nodes:
            self.start_node(node)
        self.wait_until_idle()

    def _configure(self) -> None:
        values = {
            "host": socket.gethostname().split(".")[0], "user": getpass.getuser(), "folder": self.folder,
            "node_timeout": self.node_timeout, "port": self.ports[0], "node_port": self.ports[1],
            "gathering": GATHER_AND_KILL if self.kill_over_memory or self.accounting else GATHER_NOTHING,
            "accounting": self._accounting_lines(), "name": self.name, "select": self.select,
            "consumable": "CR_Memory" if self.select == "linear" else "CR_Core_Memory",
        }  # fmt: skip
        lines = [
            f"NodeName={node} NodeHostname={values['host']} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
            f"RealMemory=8000 Gres=gpu:{self.gpus} State=UNKNOWN"
            for node, port in zip(self.nodes, self.ports[1:], strict=False)
        ]
        self.conf.write_text(SLURM_CONF.format(**values) + "\n".join(lines) + "\n" + PARTITIONS)
        files = ",".join(["/dev/null", "/dev/zero", "/dev/full", "/dev/random"][: self.gpus])
        gres = [f"NodeName={node} Name=gpu File={files}" for node in self.nodes]
        (self.folder / "etc" / "gres.conf").write_text("\n".join(["AutoDetect=off", *gres]) + "\n")

    def _accounting_lines(self) -> str:
        if not self.accounting:
            return ""
        return (
            "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
            f"AccountingStoragePort={self.ports[-1]}\nAccountingStorageTRES=gres/gpu"
        )

    def start_controller(self, *options: str) -> None:
        """Start slurmctld (again)."""
        self._daemon("slurmctld", "-D", *options)
        wait_for(lambda: self.ask("scontrol", "ping").returncode == 0, 30, "slurmctld answers")

    def start_node(self, node: str) -> None:
        """Start the slurmd of one node (again)."""
        self._daemon("slurmd", "-D", "-N", node, prefix=self.node_prefix)

    def _daemon(
        self, name: str, *options: str, prefix: Sequence[str] = (), **environment: str
    ) -> psutil.Process:
        program = find_program(name)
        assert program is not None, missing_programs(accounting=self.accounting)
        log = (self.folder / "log" / f"{name}.start.log").open("a")
        process = subprocess.Popen(
            [*prefix, program, *options], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True, env={**self.environment, **environment},
        )  # fmt: skip
        log.close()
        self.started.append(psutil.Process(process.pid))
        return self.started[-1]

    def wait_until_idle(self, timeout: float = 60.0) -> None:
        """Wait until every node is there and free."""

        def idle() -> bool:
            states = self.ask("sinfo", "-h", "-N", "-p", "main", "-o", "%T").stdout.split()
            return len(states) == len(self.nodes) and set(states) == {"idle"}

        wait_for(idle, timeout, f"all nodes idle (logs in {self.folder}/log)")

    def ask(self, *command: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a client of this cluster."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def run(self, *command: str, timeout: float = 60.0) -> str:
        """Run a client of this cluster that must succeed; returns what it prints."""
        answer = self.ask(*command, timeout=timeout)
        assert answer.returncode == 0, f"{' '.join(command)}: {answer.stderr}"
        return answer.stdout

    def jobs(self) -> dict[str, tuple[str, str, int]]:
        """State, reason and restarts of every job that Slurm remembers."""
        text = self.run("squeue", "-h", "-r", "-a", "-t", "all", "-o", "%i|%T|%r")
        lines = [line.split("|") for line in text.splitlines()]
        return {job_id: (state, reason, 0) for job_id, state, reason in lines}

    def states(self) -> dict[str, str]:
        """State of every job that Slurm remembers."""
        return {job_id: state for job_id, (state, _, _) in self.jobs().items()}

    def job(self, job_id: str) -> dict[str, str]:
        """All fields that scontrol shows of a job."""
        words = self.run("scontrol", "-o", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def let_start(self, job_id: str, timeout: float = 60.0) -> None:
        """Let a requeued job start now: Slurm itself waits two minutes.

        It would fail if its last start were not over yet; one that could not be launched is held: release it.
        """
        wait_for(lambda: self.states().get(job_id) == "PENDING", timeout, f"job {job_id} pending")
        time.sleep(3)
        wait_for(lambda: not self.steps(job_id), timeout, f"the last start of job {job_id} is over")

        def started() -> bool:
            if self.states().get(job_id) != "PENDING":
                return True
            if "held" in self.job(job_id)["Reason"].lower():
                self.ask("scontrol", "release", job_id)
            self.ask("scontrol", "update", f"JobId={job_id}", "StartTime=now")
            return False

        wait_for(started, timeout, f"job {job_id} starts", interval=1.0)

    def steps(self, job_id: str) -> list[psutil.Process]:
        """The processes by which Slurm keeps a job's steps: their titles are slurmstepd: [job.step]."""
        title = f"[{self.job(job_id)['JobId']}."
        return [process for process in self.processes() if title in " ".join(command_of(process))]

    def daemon(self, name: str, node: str | None = None) -> psutil.Process:
        """The running process of slurmctld or of a node's slurmd."""
        for process in self.started:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                words = process.cmdline()
                if Path(words[0]).name == name and (node is None or words[-1] == node):
                    return process
        raise AssertionError(f"{name} {node or ''} does not run")

    def kill_node(self, node: str) -> None:
        """A node fails: its slurmd, its steps and everything they started are gone at once."""
        kill(self.daemon("slurmd", node), signal.SIGKILL)
        for _ in range(3):  # a process may have forked meanwhile
            members = [process for process in self.processes() if node_of(process) == node]
            steps = [
                parent for process in members for parent in parents(process) if parent.name() == "slurmstepd"
            ]
            # stopped first: a step must not live to report that its task has died
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for process in [*dict.fromkeys(steps), *members]:
                    kill(process, number)

    def processes(self) -> list[psutil.Process]:
        """All processes that belong to this cluster: known by SLURM_CONF in their environment."""
        processes = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURM_CONF") == str(self.conf) and process.pid != os.getpid():
                    processes.append(process)
            except (psutil.Error, OSError):
                continue
        return processes

    def stop(self) -> None:
        """End every process of this cluster by its pid."""
        for process in reversed(self.started):
            kill(process, signal.SIGTERM)
        psutil.wait_procs(self.started, timeout=10)
        for _ in range(3):
            for process in {*self.processes(), *self.started}:
                kill(process, signal.SIGKILL)
            psutil.wait_procs(self.started, timeout=5)
        self.started.clear()

    # Accounting

    def _start_accounting(self) -> None:
        database, run = self.folder / "db", self.folder / "run"
        port, user = self.ports[-1], getpass.getuser()
        install = find_program("mariadb-install-db")
        assert install is not None
        subprocess.run(
            [install, "--no-defaults", f"--datadir={database}", "--auth-root-authentication-method=socket",
             f"--auth-root-socket-user={user}", *user_option(user)],
            check=True, capture_output=True,
        )  # fmt: skip
        self._daemon("mariadbd", "--no-defaults", "--skip-networking", f"--datadir={database}",
                     f"--socket={run}/db.sock", f"--pid-file={run}/db.pid", *user_option(user))  # fmt: skip
        wait_for((run / "db.sock").exists, 30, "MariaDB is up")
        self._configure_slurmdbd(port, user)
        self._daemon("slurmdbd", "-D", MYSQL_UNIX_PORT=f"{run}/db.sock")
        wait_for(
            lambda: self.ask("sacctmgr", "-i", "add", "cluster", "test").returncode == 0,
            60,
            "slurmdbd is up",
            1.0,
        )

    def _configure_slurmdbd(self, port: int, user: str) -> None:
        lines = [
            "AuthType=auth/none", "DbdHost=localhost", "DbdAddr=127.0.0.1", f"DbdPort={port}",
            f"SlurmUser={user}",
            f"LogFile={self.folder}/log/slurmdbd.log", f"PidFile={self.folder}/run/slurmdbd.pid",
            "StorageType=accounting_storage/mysql", "StorageLoc=slurm_acct_db", f"StorageUser={user}",
            "StorageHost=localhost",
        ]  # fmt: skip
        path = self.folder / "etc" / "slurmdbd.conf"
        path.write_text("\n".join(lines) + "\n")
        path.chmod(0o600)


def user_option(user: str) -> list[str]:
    """MariaDB refuses to run as root without this."""
    return ["--user=root"] if user == "root" else []


def node_of(process: psutil.Process) -> str | None:
    """The node on which a job's process believes to be."""
    try:
        return process.environ().get("SLURMD_NODENAME")
    except (psutil.Error, OSError):
        return None


def command_of(process: psutil.Process) -> list[str]:
    """The words of a command line; none if the process has ended."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def parents(process: psutil.Process) -> list[psutil.Process]:
    """All processes above one."""
    try:
        return process.parents()
    except psutil.Error:
        return []


def kill(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended already."""
    try:
        process.send_signal(number)
    except psutil.Error:
        return


def main(environment: Mapping[str, str] = os.environ) -> None:
    """Start a cluster by hand in the folder given as first argument and keep it until Ctrl-C."""
    import sys

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # leaves the `with` below, which stops every daemon
    folder = Path(
        sys.argv[1] if len(sys.argv) > 1 else environment.get("TMPDIR", "/tmp") + "/slurm"
    ).absolute()
    with Cluster(folder, nodes=int(sys.argv[2]) if len(sys.argv) > 2 else 1) as cluster:
        print(f"export SLURM_CONF={cluster.conf}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
