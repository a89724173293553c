"""Workflows for the tests: written into a temporary folder, run by a controller of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cluster import Cluster, wait_for
from trainer import final_weights

TRAINER = Path(__file__).with_name("trainer.py")

TRAINING = """\
RUNS = {runs!r}

rule all:
    input: expand("runs/{{run}}/metrics.json", run=RUNS)

rule train:
    output:
        weights="runs/{{run}}/weights.txt",
        metrics="runs/{{run}}/metrics.json",
    params: folder="runs/{{run}}"
    resources: {resources}
    shell: "{python} {trainer} {{params.folder}} {options}"
"""


@dataclass
class Controller:
    """A running Snakemake and what it has printed so far."""

    process: subprocess.Popen[str]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float = 180.0) -> int:
        """Its exit code; fails with its output if it does not end."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"snakemake still runs after {timeout:.0f} s:\n{self.text}") from None

    def finish(self, timeout: float = 180.0) -> str:
        """Wait for success and return its output."""
        assert self.wait(timeout) == 0, self.text
        return self.text

    def kill(self) -> None:
        """The controller dies at once, as a closed laptop does."""
        self.process.kill()
        self.process.wait(30)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def says(self, pattern: str, timeout: float = 60.0) -> None:
        """Wait until it has printed something."""
        wait_for(
            lambda: re.search(pattern, self.text),
            timeout,
            f"{pattern!r} in the output of snakemake:\n{self.text}",
        )


@dataclass
class Workflow:
    """A folder with a Snakefile, and the cluster its jobs go to (None: no Slurm)."""

    folder: Path
    cluster: Cluster | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    epochs: int = 4
    steps: int = 5
    controllers: list[Controller] = field(default_factory=list)

    def write(self, text: str) -> None:
        """The Snakefile as it is."""
        (self.folder / "Snakefile").write_text(text)

    def write_training(
        self, runs: list[str], resources: str = "runtime=10, mem_mb=200, gpu=1", **options: Any
    ) -> None:
        """A Snakefile that trains with the stand-in."""
        options = {"epochs": self.epochs, "steps": self.steps, **options}
        words = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
        self.write(
            TRAINING.format(
                runs=runs, resources=resources, python=sys.executable, trainer=TRAINER, options=words
            )
        )

    def command(self, *arguments: str) -> list[str]:
        """The command line of a controller."""
        settings = {"poll_seconds": 2, "shared_folder_check": "no", **self.settings}
        options = [f"--submitit-{name.replace('_', '-')}={value}" for name, value in settings.items()]
        return [sys.executable, "-m", "snakemake", "--executor", "submitit", "--jobs", "20", *options,
                "--latency-wait", "5", "--max-jobs-per-timespan", "1000/1s", "--rerun-incomplete",
                *arguments]  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        environment = dict(os.environ) if self.cluster is None else self.cluster.environment
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        return {**environment, "PATH": path, **self.variables}

    def start(self, *arguments: str) -> Controller:
        """Start a controller and return at once."""
        log = self.folder / f"controller{len(self.controllers)}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                self.command(*arguments), cwd=self.folder, env=self.environment, stdout=stream,
                stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
        self.controllers.append(Controller(process, log))
        return self.controllers[-1]

    def call(self, *arguments: str, timeout: float = 180.0) -> Controller:
        """Run a controller to its end."""
        controller = self.start(*arguments)
        controller.wait(timeout)
        return controller

    def unlock(self) -> None:
        """The fix for the lock that a killed controller leaves."""
        command = [sys.executable, "-m", "snakemake", "--unlock"]
        subprocess.run(
            command, cwd=self.folder, env=self.environment, check=True, capture_output=True, timeout=60
        )

    def entries(self) -> dict[str, dict[str, Any]]:
        """The journal, read as any outsider would: by wildcard `run`, or by name."""
        entries = {}
        for path in (self.folder / ".snakemake" / "submitit" / "journal").glob("*.json"):
            entry = json.loads(path.read_text())
            entries[entry["wildcards"].get("run", entry["name"])] = entry
        return entries

    def job_id(self, run: str, timeout: float = 60.0) -> str:
        """Slurm's id of a run's job, as soon as it is submitted."""
        return str(wait_for(lambda: self.entries().get(run, {}).get("job_id"), timeout, f"{run} submitted"))

    def history(self, run: str) -> list[dict[str, Any]]:
        """The epochs that a run has trained so far."""
        path = self.folder / "runs" / run / "history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_epochs(self, run: str, count: int, timeout: float = 90.0) -> None:
        """Wait until a run has trained some epochs."""
        wait_for(lambda: len(self.history(run)) >= count, timeout, f"{count} epochs of {run}")

    def metrics(self, run: str) -> dict[str, Any]:
        """The metrics a run has published."""
        content: dict[str, Any] = json.loads((self.folder / "runs" / run / "metrics.json").read_text())
        return content

    def assert_undisturbed(self, run: str) -> None:
        """The weights are those of an undisturbed training, and no epoch was trained twice."""
        weights = (self.folder / "runs" / run / "weights.txt").read_text()
        assert weights == final_weights(self.epochs, self.steps)
        assert [line["epoch"] for line in self.history(run)] == list(range(1, self.epochs + 1))

    def stop(self) -> None:
        """End controllers that still run, and jobs of the local cluster."""
        for controller in self.controllers:
            if controller.process.poll() is None:
                controller.kill()
        if self.cluster is None:
            self._end_local_jobs()

    def _end_local_jobs(self) -> None:
        for process in psutil.process_iter():
            try:
                ours = str(self.folder) in process.cwd() and "python" in process.name()
                if ours and process.pid != os.getpid():
                    process.kill()
            except psutil.Error:
                continue
