"""What a user installs: environment.yml, pyproject.toml and the Makefile say the same thing."""

import ast
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from scripts.lowest_versions import lowest_versions

ROOT = Path(__file__).parents[2]
SOURCES = (
    "Snakefile",
    "config",
    "workflow",
    "profiles",
    "fbt_core",
    "fbt_paper",
    "pyproject.toml",
    "setup.py",
)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pip_lines() -> list[str]:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    return next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))


def test_environment_yml_names_the_ranges_of_pyproject():
    wanted = {str(Requirement(line)) for line in project()["dependencies"]}
    named = {str(Requirement(line)) for line in pip_lines() if not line.startswith("-e")}
    assert named == wanted


def test_environment_yml_ends_in_editable_installs_of_every_distribution_here():
    distributions = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/pyproject.toml")}
    expected = {f"-e ./{name}" for name in distributions} | {"-e ."}
    assert set(pip_lines()[-len(expected) :]) == expected


def test_python_range_agrees_everywhere():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert f"python {project()['requires-python']}" in environment["dependencies"]
    assert "(3, 11)" in (ROOT / "Makefile").read_text()


def test_pillow_that_breaks_the_papers_policy_is_excluded():
    pillow = next(r for r in map(Requirement, project()["dependencies"]) if r.name == "pillow")
    assert not pillow.specifier.contains("13.0.0")
    assert pillow.specifier.contains("12.3.0")


def test_every_make_target_named_in_a_document_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("config/*.md")]
    words = re.compile(r"(?:`|^ *(?:\$ )?)make ([a-z-]+)", re.M)
    named = {name for path in documents for name in words.findall(path.read_text())}
    assert {"demo", "test", "test-all", "lint"} <= named <= targets


def test_nothing_large_or_generated_is_committed():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        return  # a source archive without git
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    assert not [p for p in paths if "results" in p.relative_to(ROOT).parts[:1] and p.name != "README.md"]
    # The largest are the images that scale mini trains its teachers on.
    assert not [p.name for p in paths if p.is_file() and p.stat().st_size > 9_000_000]


def test_rules_promise_no_environment_of_their_own():
    """They call the interpreter that runs Snakemake, so one of a rule would be ignored."""
    environment = re.compile(r"^ *(conda|container|singularity):", re.MULTILINE)
    rules = [ROOT / "Snakefile", *ROOT.glob("workflow/rules/*.smk")]
    assert not [path.name for path in rules if environment.search(path.read_text())]


# ---------------------------------------------------------------- versions


def test_every_package_that_is_imported_is_declared():
    declared = {Requirement(line).name.lower().replace("_", "-") for line in project()["dependencies"]}
    optional = {"tensorboard", "wandb", "trackio"}
    ours = {"fbt_core", "fbt_paper", "snakemake_executor_plugin_submitit", "gpu_slots"}
    owner = packages_distributions()
    for path in [*ROOT.glob("fbt_core/**/*.py"), *ROOT.glob("fbt_paper/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} - ours - set(sys.stdlib_module_names):
                distributions = {d.lower().replace("_", "-") for d in owner.get(name, [name])}
                distributions = {d.replace("pydantic-core", "pydantic") for d in distributions}
                assert distributions & (declared | optional), f"{path} imports {name}, which is not declared"


def test_every_dependency_has_a_lower_bound_that_test_lowest_installs():
    assert {"numpy", "psutil", "pillow", "timm", "submitit"} <= set(lowest_versions())
    assert {"torch", "torchvision"}.isdisjoint(
        lowest_versions()
    )  # pyproject.toml says that these are untested


def test_both_distributions_state_one_bound_of_submitit():
    plugin = tomllib.loads((ROOT / "plugin/pyproject.toml").read_text())["project"]["dependencies"]
    bounds = [line for line in (*project()["dependencies"], *plugin) if line.startswith("submitit")]
    assert len(bounds) == 2 and len(set(bounds)) == 1


# ---------------------------------------------------------------- a wheel, a module


def call(folder: Path, *arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """A Python module in a folder that is no clone, with the packages of `path` alone."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("SNAKEMAKE")}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**known, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """What a wheel installs, from a copy of the sources so that nothing is built in the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, folder / name)
    for name in ("README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder / "dist"), str(folder)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    shutil.unpack_archive(wheel, folder / "site", "zip")
    return folder / "site"


def test_a_wheel_outside_a_clone_says_what_to_do(installed, tmp_path):
    for command in ("plan", "status"):
        done = call(tmp_path, "fbt_paper.cli", command, path=installed)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert f"{tmp_path}/config: there is no configuration here" in done.stderr
        assert "`fbt init FOLDER`" in done.stderr


def test_init_makes_a_working_copy_that_plans(installed, tmp_path):
    work = tmp_path / "my study"
    done = call(tmp_path, "fbt_paper.cli", "init", work.name, path=installed)
    assert done.returncode == 0 and "snakemake --cores 2" in done.stdout
    for name in ("config", "workflow", "profiles"):
        compared = filecmp.dircmp(ROOT / name, work / name)
        assert not compared.left_only and not compared.right_only and not compared.diff_files
    assert {path.name for path in work.iterdir() if path.is_symlink()} == {"slurm", "workstation"}
    assert (work / "slurm" / "config.yaml").is_file()  # `snakemake --profile slurm` looks for ./slurm
    assert call(work, "fbt_paper.cli", "plan", path=installed).returncode == 0
    done = call(work, "snakemake", "-n", "--quiet", "rules", path=installed)
    assert done.returncode == 0, done.stderr
    done = call(tmp_path, "fbt_paper.cli", "init", work.name, path=installed)
    assert done.returncode == 1 and "is not empty" in done.stderr


def test_the_readmes_module_plans_in_another_workflow(tmp_path):
    """docs/install.md, "As a part of another workflow": the lines as written, with the clone's own path."""
    (block,) = re.findall(r"```python\n(module fbt:.*?)```", (ROOT / "docs/install.md").read_text(), re.S)
    (tmp_path / "Snakefile").write_text(block.replace("FBT-Repro/Snakefile", str(ROOT / "Snakefile")))
    shutil.copytree(ROOT / "config", tmp_path / "config")
    done = call(tmp_path, "snakemake", "-n", path=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^train +\d+$", done.stdout + done.stderr, re.M)


# ---------------------------------------------------------------- containers, the catalogue


def test_the_containers_copy_files_that_exist():
    docker, apptainer = (
        (ROOT / "containers/Dockerfile").read_text(),
        (ROOT / "containers/fbt.def").read_text(),
    )
    copied = " ".join(re.findall(r"^COPY (.+) \S+$", docker, re.M)).split()
    assert set(SOURCES) <= set(copied)
    packed = re.search(r"^%files\n((?: {4}\S+ \S+\n)+)", apptainer, re.M)[1].split()[::2]
    assert sorted(copied) == sorted(packed)
    assert all((ROOT / name).exists() for name in copied)


def test_the_catalogue_entry_promises_only_what_works():
    entry = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    deployment = entry["software-stack-deployment"]
    assert not any(deployment.values()), "the rules use the interpreter that runs Snakemake"
    assert entry["report"] is True and "report:" in (ROOT / "Snakefile").read_text()


def test_a_missing_executor_is_named_with_what_installs_it(monkeypatch):
    from fbt_paper.status.cluster import check_module

    monkeypatch.setitem(sys.modules, "snakemake_executor_plugin_submitit", None)
    check = check_module("snakemake_executor_plugin_submitit")
    assert not check.ok and "snakemake_executor_plugin_submitit" in check.what
    assert "pip install ./plugin" in check.hint
    assert "invalid choice: 'submitit'" in (ROOT / "docs/install.md").read_text()
