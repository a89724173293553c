"""What a user installs: environment.yml, pyproject.toml and the Makefile say the same thing."""

import re
import subprocess
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


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
    assert not [p.name for p in paths if p.is_file() and p.stat().st_size > 4_000_000]


def test_rules_promise_no_environment_of_their_own():
    """They call the interpreter that runs Snakemake, so one of a rule would be ignored."""
    environment = re.compile(r"^ *(conda|container|singularity):", re.MULTILINE)
    rules = [ROOT / "Snakefile", *ROOT.glob("workflow/rules/*.smk")]
    assert not [path.name for path in rules if environment.search(path.read_text())]
