"""Which changes of the code the tests would not notice: mutmut over the parts that numbers follow from.

python -m pip install --target /tmp/mutmut mutmut
PYTHONPATH=/tmp/mutmut python benchmarks/mutation.py statistics /tmp/mutation

mutmut changes one operator, number, name or argument at a time in a copy of the tree and runs the fast tests
that reach it, each mutant in a process of its own. Not part of CI; benchmarks/mutation.md has the result.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE, PAPER = "tests/test_core", "tests/test_paper"
ENGINE = (f"{CORE}/test_engine_steps.py", f"{CORE}/test_engine_state.py", f"{CORE}/test_engine_recipes.py")
GROUPS = {
    "statistics": (["fbt_paper/tables/statistics.py"], [f"{PAPER}/test_statistics.py"]),
    "ids": (
        ["fbt_core/spec.py", "fbt_paper/plan/run_spec.py"],
        [f"{PAPER}/test_ids.py", f"{PAPER}/test_plan.py", f"{PAPER}/test_config.py"],
    ),
    "losses": (
        ["fbt_core/losses/*.py"],
        [f"{CORE}/test_losses.py", f"{CORE}/test_losses_parity.py"],
    ),
    "fusion": (
        ["fbt_core/fusion/*.py"],
        [f"{CORE}/test_fusion.py", f"{CORE}/test_methods_fbt.py"],
    ),
    "checkpoint": (
        ["fbt_core/checkpoint.py"],
        [f"{CORE}/test_checkpoint_resume.py", f"{CORE}/test_engine_state.py"],
    ),
    "loop": (
        ["fbt_core/train.py", "fbt_core/learner.py"],
        [*ENGINE, f"{CORE}/test_checkpoint_resume.py", f"{CORE}/test_engine_errors.py"],
    ),
    "reattach": (
        ["src/snakemake_executor_plugin_submitit/reattach.py"],
        ["tests/test_reattach.py", "tests/test_units.py"],
    ),
}
"""Group -> the files that are changed, and the fast tests nearest to them; the plugin's from its folder."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("folder", type=Path, help="for the copies of the tree")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("mutants", nargs="*", help="only these, e.g. fbt_core.losses.logits.*")
    chosen = parser.parse_args()
    copy = chosen.folder / chosen.group
    if not copy.exists():
        make_copy(copy, ROOT / "plugin" if chosen.group == "reattach" else ROOT, *GROUPS[chosen.group])
    command = [sys.executable, "-m", "mutmut"]
    run = [*command, "run", "--max-children", str(chosen.processes), *chosen.mutants]
    subprocess.run(run, cwd=copy, env=environment(), check=False)
    return subprocess.run([*command, "results"], cwd=copy, env=environment(), check=False).returncode


def make_copy(copy: Path, root: Path, files: list[str], tests: list[str]) -> None:
    """The tracked files below root, with mutmut's settings."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    tracked = [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, copy / name)
    # All of the tree beside what is changed: tests read config/, the workflow and golden files.
    sources = {"fbt_core", "fbt_paper", "src"} & {Path(name).parts[0] for name in tracked}
    beside = sorted({Path(name).parts[0] for name in tracked} - sources)
    lists = {
        "source_paths": sorted(sources),
        "only_mutate": files,
        "also_copy": beside,
        "pytest_add_cli_args_test_selection": tests,
        "pytest_add_cli_args": ["-m", "not slow and not smoke and not slurm", "-p", "no:cacheprovider"],
    }
    # A blank first line: mutmut takes a list of one item that way only.
    lines = [f"{key} =\n" + "".join(f"    {value}\n" for value in values) for key, values in lists.items()]
    # A process that has run torch's autograd cannot be forked: each mutant comes from a fresh one.
    lines.append("process_isolation = forkserver\n")
    (copy / "setup.cfg").write_text("[mutmut]\n" + "".join(lines))


def environment() -> dict[str, str]:
    """Numbers of one thread; only the copy's packages can be imported."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    sys.exit(main())
