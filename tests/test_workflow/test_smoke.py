"""`snakemake --cores 2` at scale smoke, for real: every table from real training on real images.

FBT_SMOKE_FOLDER may name a clone where it has already run (e.g. by `make demo`); nothing is trained then.
"""

import csv
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fbt_paper.plan.figures import FigurePlan
from fbt_paper.plan.targets import Flow

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
FLOW = Flow({"scale": "smoke"})
FIGURES = FigurePlan(FLOW)
PLAN = FLOW.plan
TABLES = PLAN.all_tables
TWO_AT_A_TIME_MB = 3000
ACCURACY = [key for key in TABLES if PLAN.tables[key].kind == "accuracy"]


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--cores", os.environ.get("CORES", "2"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A clone in which the whole paper has run at scale smoke."""
    if "FBT_SMOKE_FOLDER" in os.environ:
        return Path(os.environ["FBT_SMOKE_FOLDER"]).resolve()
    clone = tmp_path_factory.mktemp("smoke") / "clone"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)
    done = snakemake(clone)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return clone


@pytest.fixture(scope="module")
def metrics(folder) -> dict[str, dict]:
    """What every run that `make demo` trains has measured, those included that only figures need."""
    shown = [run for table in TABLES for run in PLAN.tables[table].runs]
    drawn = [run for name in FIGURES.drawn("index") for run in FIGURES.drawings[name].runs]
    needed = PLAN.needed([*shown, *drawn])
    runs = folder / "results/smoke/runs"
    return {run: json.loads((runs / run / "metrics.json").read_text()) for run in needed}


def test_a_second_snakemake_says_there_is_nothing_to_do(folder):
    done = snakemake(folder)
    assert "Nothing to be done" in done.stdout + done.stderr


def test_networks_learn_from_a_thousand_images(metrics):
    taught_by = {needed for run in metrics for needed in PLAN.runs[run].needed_runs()}
    alone = {run for run in metrics if PLAN.runs[run].teacher is None} | taught_by
    networks = {PLAN.runs[run].student.architecture for run in alone}
    drawn = {network.architecture for network in FIGURES.figure_of("figure2").networks}
    assert len(alone) >= 9 and drawn <= networks
    assert alone >= {run for run in metrics if "-scratch-" in run}
    scores = {run: metrics[run]["best"]["top1"] for run in alone}
    # Of ten classes; teachers, which see ten times the images, have a test of their own.
    assert {run: top1 for run, top1 in scores.items() if top1 < 40} == {}


def test_two_runs_at_a_time_fit_three_gigabytes(metrics):
    peaks = sorted(content["peak_memory_mb"] for content in metrics.values())
    assert peaks[0] > 100 and sum(peaks[-2:]) <= TWO_AT_A_TIME_MB


def test_smoke_is_small_but_not_empty(metrics):
    for run, content in metrics.items():
        teaches = any(run in PLAN.runs[other].needed_runs() for other in metrics)
        alone = PLAN.runs[run].teacher is None
        assert content["spec"]["dataset"]["train_images"] == (10000 if teaches and alone else 1000) or alone
        assert len(content["history"]) == PLAN.runs[run].recipe.epochs >= 3
        tested = [line["top1"] for line in content["history"] if line["top1"] is not None]
        assert content["best"]["top1"] == max(tested) and content["last"]["top1"] == tested[-1]


def test_teachers_know_more_than_their_students_can_learn_alone(metrics):
    """By 3 points over a student from scratch with the same recipe, and 80 % or more."""
    scratch = {
        PLAN.runs[run].student.architecture: content["last"]["top1"]
        for run, content in metrics.items()
        if PLAN.runs[run].teacher is None and PLAN.runs[run].dataset.train_images == 1000
    }
    pairs = 0
    for run, content in metrics.items():
        spec = PLAN.runs[run]
        if spec.teacher is None or PLAN.runs[spec.teacher.weights.removeprefix("run:")].teacher is not None:
            continue  # an assistant knows what it was taught
        assert content["teacher_top1"] >= 80, run
        if spec.student.architecture in scratch:
            assert content["teacher_top1"] >= scratch[spec.student.architecture] + 3, run
            pairs += 1
    assert pairs >= 20


def test_a_cells_standard_error_is_at_most_eight_tenths_of_a_point(metrics):
    for run, content in metrics.items():
        share, images = content["last"]["top1"] / 100, content["spec"]["dataset"]["test_images"]
        assert 100 * (share * (1 - share) / images) ** 0.5 <= 0.8, run


def test_every_result_says_how_it_was_made(metrics):
    for run, content in metrics.items():
        assert content["run"] == run
        assert {"python", "torch", "timm"} <= set(content["provenance"]["versions"])
        assert content["images_per_second"] > 0 and content["seconds"] > 0 and content["parameters"] > 0
        assert {"git_sha", "git_dirty", "started", "finished"} <= set(content["provenance"])
        assert content["execution"]["device"] == "cpu" and content["execution"]["threads"] == 1


def test_weights_are_those_of_the_metrics(folder, metrics):
    for run, content in metrics.items():
        data = (folder / "results/smoke/runs" / run / "weights.safetensors").read_bytes()
        assert hashlib.sha256(data).hexdigest() == content["weights_sha256"]


@pytest.mark.parametrize("table", ACCURACY)
def test_every_cell_of_a_table_is_measured(folder, metrics, table):
    with (folder / f"results/smoke/tables/{table}.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(PLAN.tables[table].cells)
    for line in lines:
        runs = line["runs"].split()
        mean = sum(metrics[run]["best"]["top1"] for run in runs) / len(runs)
        assert float(line["top1"]) == pytest.approx(mean, abs=0.006)
        assert (line["scale"], int(line["seeds"])) == ("smoke", len(runs))


def test_table_4_has_three_seeds_and_a_deviation(folder):
    with (folder / "results/smoke/tables/table4.csv").open() as file:
        rows = {line["row"]: line for line in csv.DictReader(file)}
    for key in ("mse_all_stages", "mse_final", "mse_final_pooled", "infonce_final_pooled"):
        assert rows[key]["seeds"] == "3" and float(rows[key]["deviation"]) >= 0
    assert len({rows[key]["top1"] for key in rows}) > 2


def test_table_6_holds_the_papers_digits_to_the_unit(folder):
    with (folder / "results/smoke/tables/table6.csv").open() as file:
        rows = {(line["row"], line["part"]): line for line in csv.DictReader(file)}
    expected = {
        ("deit_t__resnet18", "student"): ("11689512", "1824033792"),
        ("resnet50__deit_t", "student"): ("5679400", "1078633728"),
        ("convnext_t__resmlp_s12", "student"): ("15322456", "3009739776"),
        ("deit_t__resnet18", "ofa_branch"): ("4920736", "98431488"),
        ("resnet50__deit_t", "ofa_branch"): ("5810848", "252223488"),
        ("convnext_t__resmlp_s12", "ofa_branch"): ("21644704", "986892288"),
        ("deit_t__resnet18", "fbt_branch_swinv2"): ("387648", "75826864"),
        ("resnet50__deit_t", "fbt_branch_swinv2"): ("535104", "104728240"),
        ("convnext_t__resmlp_s12", "fbt_branch_swinv2"): ("1483392", "290479792"),
    }
    counted = {key: (rows[key]["parameters_paper_rule"], rows[key]["macs_paper_rule"]) for key in expected}
    assert counted == expected


@pytest.mark.parametrize("kind", ["csv", "md", "tex"])
def test_every_table_is_there_in_every_form(folder, kind):
    for table in TABLES:
        assert (folder / f"results/smoke/tables/{table}.{kind}").stat().st_size > 0


def test_smoke_numbers_are_labelled_as_smoke(folder):
    texts = [folder / "results/smoke/comparison.md"]
    texts += [folder / f"results/smoke/tables/{table}.{kind}" for table in ACCURACY for kind in ("md", "tex")]
    assert all("SMOKE" in path.read_text() for path in texts)


def test_the_results_page_is_there(folder):
    assert "<html" in (folder / "results/smoke/index.html").read_text()[:500]


def test_the_commit_of_a_clone_is_recorded(folder, metrics):
    """A clone has one; the copy that these tests make has none, and says so."""
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True)
    cloned = (folder / ".git").exists() and answer.returncode == 0
    for content in metrics.values():
        sha = content["provenance"]["git_sha"]
        assert re.fullmatch("[0-9a-f]{40}", sha) if cloned else sha is None


def test_what_the_page_links_is_there(folder):
    page = (folder / "results/smoke/index.html").read_text()
    links = re.findall(r'href="(figures/[^"]+)"', page)
    assert len(links) >= 2 * len(FIGURES.drawn("index"))
    assert [link for link in links if not (folder / "results/smoke" / link).is_file()] == []


def test_pictures_are_told_with_their_numbers(folder):
    page = html.unescape((folder / "results/smoke/index.html").read_text())
    texts = re.findall(r'<img src="[^"]*" alt="([^"]*)"', page)
    for words in ("methods compared", "as stated", "Mean linear CKA"):
        assert any(words in text for text in texts)
    assert min(map(len, texts)) > 60


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory) -> str:
    """The text of `snakemake --report`, without tags and runs of blanks."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    done = snakemake(folder, "--report", str(path))
    assert done.returncode == 0, done.stderr[-5000:]
    return path.read_text(encoding="utf-8")


def test_the_report_has_captions_and_categories(report):
    kinds = ("curves", "feature_numbers", "features", "page", "similarity", "taxonomy")
    for kind in kinds:
        caption = (ROOT / f"workflow/report/{kind}.rst").read_text().strip()
        assert html.escape(caption, quote=False)[:60] in report, kind
    for table in TABLES:
        assert f"Table {table}: one line per cell" in report or PLAN.tables[table].kind == "cost"
    for category in ("Figures", "Training curves", "Results page", "Tables"):
        assert f'"{category}"' in report
    assert "at scale" in report and "they are not the paper" in report


@pytest.mark.parametrize("table", TABLES)
def test_latex_compiles_with_booktabs(folder, tmp_path, table):
    if shutil.which("pdflatex") is None:
        message = "pdflatex is not installed (Debian: texlive-latex-base texlive-latex-recommended)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    source = (folder / f"results/smoke/tables/{table}.tex").read_text()
    head, tail = (
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n",
        "\n\\end{document}\n",
    )
    (tmp_path / "page.tex").write_text(head + source + tail)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "! " not in done.stdout
