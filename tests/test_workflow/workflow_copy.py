"""The workflow in a temporary folder, with an engine that pretends: a run takes a moment and no torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COPIED = ("Snakefile", "config", "workflow", "profiles")

RUN = '''\
"""Pretends to be the engine: checks what a run needs, writes its results, and notes that it ran."""

import argparse, hashlib, json, os, signal, sys, time
from pathlib import Path

from fbt_core.errors import UserError
from fbt_core.packs import Ending, check_together, write_marker
from fbt_core.spec import ExecutionSettings, parse_spec

parser = argparse.ArgumentParser()
parser.add_argument("--spec", required=True, action="append")
parser.add_argument("--settings", required=True)
parser.add_argument("--runs", required=True)
parser.add_argument("--pack")
options = parser.parse_args()
runs, endings = Path(options.runs), {}
ExecutionSettings.model_validate_json(Path(options.settings).read_text())
specs = [parse_spec(Path(path).read_text()) for path in options.spec]
assert [spec.id for spec in specs] == [Path(path).stem for path in options.spec]
check_together(specs)
if os.environ.get("KILLED_PACKS") and options.pack:
    sys.exit("killed")
if options.pack:
    Path(options.pack).with_suffix(".devices").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    while Path("packs_wait").exists():
        time.sleep(0.1)
for spec in specs:
    folder = runs / spec.id
    if (folder / "metrics.json").exists():
        endings[spec.id] = Ending("complete")
        continue
    if spec.id == os.environ.get("FAILING_RUN"):
        error = UserError("this run is meant to fail", where="data/7.jpg", hint="put the file back")
        endings[spec.id] = Ending("failed", str(error))
        continue
    if spec.id == os.environ.get("LASTING_RUN"):
        folder.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGTERM, lambda *_: ((folder / "saved").touch(), sys.exit(75)))
        (folder / "started").touch()
        time.sleep(300)
    digests = {}
    for needed in spec.needed_runs():
        digests[needed] = hashlib.sha256((runs / needed / "weights.safetensors").read_bytes()).hexdigest()
    results = folder / "ready" if options.pack else folder
    results.mkdir(parents=True, exist_ok=True)
    weights = spec.id + os.environ.get("OTHER_WEIGHTS", "")
    (results / "weights.safetensors").write_text(weights)
    (folder / "read.json").write_text(json.dumps(digests))
    top1 = 60 + int(spec.id[-4:], 16) % 200 / 10
    score = {"epoch": 1, "top1": top1, "top5": 99.0}
    metrics = {"run": spec.id, "spec": spec.model_dump(mode="json")}
    epoch = score | {"loss": 1.0, "terms": {"labels": 1.0}, "top1_ema": None}
    metrics |= {"best": score, "last": score, "history": [epoch]}
    metrics["weights_sha256"] = hashlib.sha256(weights.encode()).hexdigest()
    for network, key in ((spec.teacher, "teacher_weights_sha256"), (spec.student, "initial_weights_sha256")):
        metrics[key] = digests.get(network.weights.removeprefix("run:")) if network else None
    (results / "metrics.json").write_text(json.dumps(metrics))
    endings[spec.id] = Ending("ready")
    with (runs / "trained.txt").open("a") as file:
        file.write(spec.id + "\\n")
if options.pack:
    write_marker(Path(options.pack), endings)
elif errors := [ending.error for ending in endings.values() if ending.error]:
    sys.exit(f"error: {errors[0]}")
'''

COST = '''\
"""Pretends to count Table 6."""

import json, sys
from pathlib import Path

from fbt_paper.config.load import load

counts = {rule: {"parameters": 10**6, "macs": 10**8} for rule in ("paper_rule", "true")}
row = {"student": counts, "ofa_branch": counts, "fbt_branch": {b: counts for b in ("swin", "swinv2", "vit")}}
rows = {line.key: row for line in load("config").tables[sys.argv[1]].rows}
Path(sys.argv[-1]).write_text(json.dumps({"rows": rows}))
'''


class WorkflowCopy:
    """A folder in which `snakemake` can be run and files may be edited."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def make(cls, folder: Path) -> WorkflowCopy:
        """The repository's workflow with the pretending engine."""
        folder.mkdir(parents=True)
        for name in COPIED:
            source = ROOT / name
            shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy2(source, folder / name)
        ignored = shutil.ignore_patterns("__pycache__", "fashion_mnist")
        for package in ("fbt_core", "fbt_paper"):
            shutil.copytree(ROOT / package, folder / package, ignore=ignored)
        (folder / "fbt_core" / "run.py").write_text(RUN)
        (folder / "fbt_core" / "measure" / "cost.py").write_text(COST)
        return cls(folder)

    def clone(self, folder: Path) -> WorkflowCopy:
        """The same state, times included, in another folder."""
        shutil.copytree(self.folder, folder)
        return WorkflowCopy(folder)

    def clone_of_config(self, folder: Path) -> WorkflowCopy:
        """The configuration alone in another folder."""
        shutil.copytree(self.folder / "config", folder / "config")
        return WorkflowCopy(folder)

    def snakemake(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`snakemake` in this folder, with its output as one text."""
        with self.start(*arguments, **environment) as started:
            text = started.communicate()[0]
        return subprocess.CompletedProcess(started.args, started.returncode, text)

    def start(
        self, *arguments: str, stdout: Any = subprocess.PIPE, **environment: str
    ) -> subprocess.Popen[str]:
        """`snakemake` in this folder, begun."""
        command = [sys.executable, "-m", "snakemake", *arguments]
        known = {key: value for key, value in os.environ.items() if not key.startswith("SNAKEMAKE")}
        variables = {**known, "PYTHONPATH": str(self.folder), **environment}
        return subprocess.Popen(
            command, cwd=self.folder, env=variables, stdout=stdout, stderr=subprocess.STDOUT, text=True
        )

    def planned(self, *arguments: str) -> dict[str, int]:
        """How many jobs of each rule a dry run announces."""
        done = self.snakemake("-n", *arguments)
        assert done.returncode == 0, done.stdout
        table = done.stdout.partition("Job stats:")[2].partition("total")[0]
        return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, flags=re.M)}

    def trained(self) -> list[str]:
        """Ids of the runs that the pretending engine ran, in order."""
        file = self.folder / "results" / "smoke" / "runs" / "trained.txt"
        return file.read_text().split() if file.exists() else []

    def replace(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = path.read_text()
        assert old in text, f"{name} holds no {old!r}"
        path.write_text(text.replace(old, new, 1))
