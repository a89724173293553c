"""CONTRIBUTING.md followed to the letter in a copy: its code blocks are written, nothing else is touched."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FOLDERS = ("config", "fbt_core", "fbt_paper", "workflow", "tests", "profiles")


def block(heading: str, language: str, number: int = 0) -> str:
    """A code block of a section, as written."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.S)[number]


class Copy:
    """A copy of the repository, and the commands a contributor runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in FOLDERS:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", folder)
        self.before = self.files()

    def python(self, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.folder)}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pytest(self, *arguments: str) -> int:
        """Runs tests of the copy; how many passed."""
        options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
        out = self.python("-m", "pytest", *options, *arguments)
        return int(re.search(r"(\d+) passed", out).group(1))

    def files(self) -> dict[str, bytes]:
        """All files with their content, but for what Python compiles."""
        files = [path for name in FOLDERS for path in (self.folder / name).rglob("*") if path.is_file()]
        kept = [path for path in files if "__pycache__" not in path.parts]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in kept}

    def touched(self) -> set[str]:
        """Files that were changed, added or deleted since the copy was made."""
        now = self.files()
        return {name for name in {*now, *self.before} if now.get(name) != self.before.get(name)}

    def runs(self) -> set[str]:
        """Ids of all runs of both scales."""
        program = (
            "from fbt_paper.config.load import load; from fbt_paper.plan.runs import plan\n"
            "for scale in ('smoke', 'paper'):\n"
            "    for run in plan(load('config', {'scale': scale})).runs: print(scale, run)"
        )
        return set(self.python("-c", program).splitlines())

    def add_row(self, table: str, row: str) -> None:
        path = self.folder / "config" / "tables" / f"{table}.yaml"
        head, columns = path.read_text().split("\ncolumns:")
        path.write_text(f"{head}\n{row.rstrip()}\ncolumns:{columns}")

    def append(self, name: str, text: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write("\n" + text)

    def add_the_method(self) -> None:
        (self.folder / "fbt_core/methods/half_kd.py").write_text(block("Add a method", "python"))
        self.append("config/methods.yaml", block("Add a method", "yaml"))
        self.python("-m", "tests.golden.losses", "half_kd")

    def add_the_architecture(self) -> None:
        self.append("config/architectures.yaml", block("Add an architecture", "yaml"))

    def add_the_dataset(self, images: Path) -> None:
        """The entry, sixty images, and the line that names their folder."""
        write_images(images, {"train": 20, "val": 10})
        self.append("config/datasets.yaml", block("Add a dataset", "yaml"))
        main = self.folder / "config/config.yaml"
        main.write_text(re.sub(r"data_roots:.*\n", f"data_roots:\n  flowers: {images}\n", main.read_text()))

    def add_column(self, table: str, column: str) -> None:
        path = self.folder / "config" / "tables" / f"{table}.yaml"
        path.write_text(path.read_text() + f"  - {column}\n")


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path / "fbt-repro")


REGNET = "{key: swin_t__regnet, label: Swin-T to RegNet, teacher: swin_t, student: regnet_tiny}"
FLOWERS = "{key: flowers, label: Flowers, dataset: flowers, teacher: swin_t, student: resnet18}"


def test_a_row_is_one_list_item_and_adds_its_own_runs_only(copy):
    before = copy.runs()
    copy.add_row("table4", block("Add an ablation row", "yaml"))
    added = sorted(copy.runs() - before)
    assert before <= copy.runs()
    assert len(added) == 3 + 1  # three seeds at smoke, one at paper
    assert all("-fitnet-convnext_t-swin_p-" in run for run in added)
    assert copy.touched() == {"config/tables/table4.yaml"}


def test_a_method_is_one_file_and_its_numbers(copy):
    before = copy.runs()
    copy.add_the_method()
    files = {"fbt_core/methods/half_kd.py", "config/methods.yaml", "tests/golden/losses.json"}
    assert copy.touched() == files
    assert copy.runs() == before, "a method that no table names adds no run"
    copy.add_row("table4", "  - {key: half_kd, label: Half KD, method: half_kd}")
    added = copy.runs() - before
    assert len(added) == 3 + 1
    assert all("-half_kd-convnext_t-swin_p-" in run for run in added)


def test_an_architecture_is_one_entry(copy):
    before = copy.runs()
    copy.add_the_architecture()
    assert copy.touched() == {"config/architectures.yaml"}
    assert copy.runs() == before
    copy.add_column("table5", REGNET)
    added = copy.runs() - before
    assert len(added) == 2 * 2  # two L2G blocks, two scales
    assert all("-fbt-swin_t-regnet_tiny-" in run for run in added)


@pytest.mark.slow
def test_the_tests_take_a_row_a_method_and_an_architecture_as_they_are(copy):
    """What `make test` asks of config/ and of every method, in a copy with all three."""
    copy.add_row("table4", block("Add an ablation row", "yaml"))
    copy.add_the_method()
    copy.add_row("table4", "  - {key: half_kd, label: Half KD, method: half_kd}")
    copy.add_the_architecture()
    copy.add_column("table5", REGNET)
    kinds = "not mistake and not five_seconds and not changes_the_id and not number_style"
    assert copy.pytest(
        *[f"tests/test_paper/test_{name}.py" for name in ("plan", "ids", "config")], "-k", kinds
    )
    methods = [
        f"tests/test_core/test_{name}.py" for name in ("methods", "methods_parameters", "losses_golden")
    ]
    assert copy.pytest(*methods, "-k", "half_kd") >= 9, "the nine family directions"
    assert copy.pytest("tests/test_core/test_staged.py", "-k", "regnet or (full_size and resnet18)") >= 2


@pytest.mark.slow
def test_a_dataset_is_one_entry_and_a_folder(copy, tmp_path):
    before = copy.runs()
    copy.add_the_dataset(tmp_path / "flowers")
    assert copy.touched() == {"config/config.yaml", "config/datasets.yaml"}
    assert copy.runs() == before
    copy.add_column("ablation", FLOWERS)
    added = copy.runs() - before
    assert len(added) == 2 * (7 + 1)  # seven rows and their teacher, two scales
    assert all(" flowers-" in run for run in added)
    assert "flowers: in place" in copy.python("-m", "fbt_paper.cli", "check-data", "flowers")
    (teacher,) = [run.split()[1] for run in added if run.startswith("smoke flowers-scratch-swin_t-")]
    metrics = json.loads(copy.python("-c", TRAIN, teacher))
    assert metrics["spec"]["dataset"]["name"] == "flowers"
    assert len(metrics["history"]) == metrics["spec"]["recipe"]["epochs"]


TRAIN = """
import subprocess, sys
from pathlib import Path
from fbt_paper.plan.targets import Flow, execution_settings
flow, run = Flow({}, Path("config")), sys.argv[1]
settings = execution_settings(flow.config).model_dump_json(exclude_defaults=True)
command = ["-m", "fbt_core.run", "--spec", flow.spec_json(run), "--settings", settings, "--runs", flow.runs]
subprocess.run([sys.executable, *command], check=True, stdout=sys.stderr)
print(Path(flow.runs, run, "metrics.json").read_text())
"""


def write_images(root: Path, counts: dict[str, int]) -> None:
    """Noise, so many images of each of two classes, which differ in brightness."""
    noise = random.Random(0)
    for split, count in counts.items():
        for number in range(2 * count):
            path = root / split / ("daisy", "tulip")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.frombytes("RGB", (30, 40), noise.randbytes(30 * 40 * 3))
            picture.point([value // (1 + number % 2) for value in range(256)] * 3).save(path)


def test_a_scale_is_one_file(copy):
    before = copy.runs()
    (copy.folder / "config/scales/longer.yaml").write_text(block("Add a scale", "yaml"))
    assert copy.touched() == {"config/scales/longer.yaml"}
    assert copy.runs() == before
    table = "results/longer/tables/table5.md"
    planned = copy.python("-m", "snakemake", "-n", "--config", "scale=longer", "--", table)
    assert int(re.search(r"^train +(\d+)$", planned, re.MULTILINE).group(1)) == 3 + 3 * 6


def test_a_figure_is_one_file(copy):
    before = copy.runs()
    (copy.folder / "config/figures/blocks.yaml").write_text(block("Add a figure", "yaml"))
    assert copy.touched() == {"config/figures/blocks.yaml"}
    assert copy.runs() == before
    figure = "results/smoke/figures/blocks_table5_vit_block_swin_t__resnet18.pdf"
    planned = copy.python("-m", "snakemake", "-n", "--", figure)
    assert re.search(r"^plot_similarity +1$", planned, re.MULTILINE)
    assert re.search(r"^total ", planned, re.MULTILINE)
