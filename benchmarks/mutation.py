"""Which changes of the code the tests would not notice, over the parts that numbers and jobs follow from.

python benchmarks/mutation.py reattach --list
python benchmarks/mutation.py reattach --only 3,17

In a copy of the tree each mutant changes one operator, condition, number or statement of a file, and the fast
tests nearest to the file run in a process forked from one that has imported the libraries. Not part of CI;
benchmarks/mutation.md has the result.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORE, PAPER, PLUGIN = "tests/test_core", "tests/test_paper", "plugin/tests"
MISTAKE = f"{PAPER}/test_config.py::test_a_mistake_ends_the_command_with_one_message_and_no_file"
ENGINE = (f"{CORE}/test_engine_errors.py", f"{CORE}/test_checkpoint_resume.py")
LEARNING = [
    f"{CORE}/test_engine_state.py",
    f"{CORE}/test_engine_recipes.py",
    *ENGINE,
    f"{CORE}/test_checkpoint_writer.py",
    f"{CORE}/test_distributed_parts.py",
    f"{CORE}/test_teacher_score.py",
    f"{CORE}/test_packs.py",
    f"{CORE}/test_pack_independence.py",
]
GROUPS = {
    "statistics": ("fbt_paper/tables/statistics.py", [f"{PAPER}/test_statistics.py"]),
    "logits": ("fbt_core/losses/logits.py", [f"{CORE}/test_losses.py", f"{CORE}/test_losses_parity.py"]),
    "contrast": ("fbt_core/losses/contrast.py", [f"{CORE}/test_losses.py", f"{CORE}/test_losses_parity.py"]),
    "fused": ("fbt_core/fusion/fused.py", [f"{CORE}/test_fusion.py", f"{CORE}/test_methods_fbt.py"]),
    "l2g": ("fbt_core/fusion/l2g.py", [f"{CORE}/test_fusion.py", f"{CORE}/test_methods_fbt.py"]),
    "ids": (
        "fbt_core/spec.py",
        [
            f"{CORE}/test_paper_specs.py",
            f"{CORE}/test_engine_scales.py",
            f"{MISTAKE}[sgd without momentum]",
            f"{MISTAKE}[steps without milestones]",
            f"{MISTAKE}[no RandAugment]",
            f"{MISTAKE}[longer warm-up than training]",
            f"{PAPER}/test_ids.py",
        ],
    ),
    "checkpoint": (
        "fbt_core/checkpoint.py",
        [f"{CORE}/test_engine_scaling.py", f"{CORE}/test_checkpoint_writer.py", *ENGINE],
    ),
    "learner": ("fbt_core/learner.py", LEARNING),
    "train": ("fbt_core/train.py", LEARNING),
    "reattach": (
        "plugin/src/snakemake_executor_plugin_submitit/reattach.py",
        [f"{PLUGIN}/test_reattach.py", f"{PLUGIN}/test_clusters.py"],
    ),
}
"""Group -> the file that is changed, and the fast tests nearest to it."""
LIBRARIES = ("pytest", "hypothesis", "numpy", "pandas", "pydantic", "torch", "timm", "snakemake.api")
OURS = ("fbt_", "snakemake_executor_plugin_submitit", "gpu_slots")
PLAIN_SWAPS = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "//",
}


@dataclass(frozen=True)
class Mutant:
    """One change: where it is, what it is in words, and the whole file with it."""

    line: int
    what: str
    source: str


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--list", action="store_true", help="the mutants with their numbers")
    parser.add_argument("--only", metavar="NUMBERS", help="e.g. 3,17; default: all")
    parser.add_argument(
        "--seconds", type=float, default=300, help="a mutant whose tests take longer is noticed"
    )
    chosen = parser.parse_args()
    file, tests = GROUPS[chosen.group]
    mutants = make_mutants((ROOT / file).read_text())
    numbers = list(range(len(mutants)))
    if chosen.only:
        numbers = [int(number) for number in chosen.only.split(",")]
    if chosen.list:
        for number in numbers:
            print(number, mutants[number].line, mutants[number].what)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make_copy(Path(folder))
        if run_tests(tests, 3600) != 0:
            print("the tests fail without a mutant")
            return 1
        for number in numbers:
            (Path(folder) / file).write_text(mutants[number].source)
            noticed = "noticed" if run_tests(tests, chosen.seconds) else "SURVIVED"
            print(f"{number} line {mutants[number].line}: {noticed}: {mutants[number].what}", flush=True)
    return 0


# ---------------------------------------------------------------- mutants


def make_mutants(source: str) -> list[Mutant]:
    """All mutants of a source, in the order of its lines."""
    return sorted(_mutants(source), key=lambda mutant: mutant.line)


def _mutants(source: str) -> Iterator[Mutant]:
    content = source.encode()
    starts = [0]
    for line in content.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in walk_code(ast.parse(source)):
        for part, new in changes(node, source):
            first = starts[part.lineno - 1] + part.col_offset
            last = starts[part.end_lineno - 1] + part.end_col_offset
            old = " ".join(content[first:last].decode().split())
            yield Mutant(
                part.lineno, f"{old} -> {new}", (content[:first] + new.encode() + content[last:]).decode()
            )


def walk_code(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but what is no code: annotations and decorators."""
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk_code(child)


def changes(node: ast.AST, source: str) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """The part of the source to replace, and by what."""

    def text(part: ast.AST) -> str:
        return ast.get_source_segment(source, part) or ""

    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            yield node, f"({text(left)} {PLAIN_SWAPS[type(op)]} {text(right)})"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in PLAIN_SWAPS:
            yield node, f"({text(left)} {PLAIN_SWAPS[type(op)]} {text(right)})"
        case ast.BoolOp(op=op, values=values):
            word = " or " if isinstance(op, ast.And) else " and "
            yield node, f"({word.join(f'({text(value)})' for value in values)})"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield node, f"({text(operand)})"
        case ast.Constant(value=bool(value)):
            yield node, str(not value)
        case ast.Constant(value=int(value)) | ast.Constant(value=float(value)):
            yield node, f"({value} + 1)"
        case ast.If(test=test) | ast.IfExp(test=test) if not isinstance(test, ast.Compare | ast.UnaryOp):
            yield test, f"(not ({text(test)}))"
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield node, "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield node, "pass"
        case ast.AugAssign(target=target, value=value):
            yield node, "pass"
            yield node, f"{text(target)} -= {text(value)}"
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield node, "return None"
        case ast.withitem(context_expr=manager, optional_vars=None):
            yield manager, "__import__('contextlib').nullcontext()"


# ---------------------------------------------------------------- running


def make_copy(folder: Path) -> None:
    """The tracked files below a folder, which becomes the working directory."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    os.chdir(folder)
    # The copy's packages alone, never those that are installed; a file is written twice within a second.
    sys.path[:0] = ours = [str(folder / name) for name in (".", "plugin/src", "plugin/tests")]
    os.environ.update(PYTHONPATH=os.pathsep.join(ours), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    sys.dont_write_bytecode = True
    for name in LIBRARIES:
        importlib.import_module(name)


def run_tests(tests: list[str], seconds: float) -> int:
    """Pytest's exit code in a forked process; 1 if it took too long."""
    child = os.fork()
    if not child:
        _run_in_child(tests)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 1


def _run_in_child(tests: list[str]) -> None:
    import pytest

    os.setsid()
    # Snakemake has imported its executors: the mutant is imported anew.
    for name in [name for name in sys.modules if name.startswith(OURS)]:
        del sys.modules[name]
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    code = 1
    try:
        # The plugin's tests have settings of their own, and no marker `smoke`.
        settings, fast = "pyproject.toml", "not slow and not smoke and not slurm"
        if tests[0].startswith(PLUGIN):
            settings, fast = "plugin/pyproject.toml", "not slow and not slurm"
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-c", settings, "-m", fast, *tests])
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
