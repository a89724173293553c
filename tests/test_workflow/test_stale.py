"""Nothing shown is stale: a change of what a file shows makes the file again, and trains nothing.

CHANGES is the table of what is shown and where. Each change alone must change the digests of the files that
show it; all changes together, after a finished workflow, must put the new value into each of these files and
leave the old one nowhere.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fbt_paper.figures.features import Shown
from fbt_paper.plan.claims import ClaimPlan
from fbt_paper.plan.figures import FigurePlan
from fbt_paper.plan.targets import Flow
from tests.test_paper.made_up_results import write_scale
from tests.test_paper.test_figures import made_up_arrays, made_up_matrices
from tests.test_workflow.workflow_copy import WorkflowCopy

CLAIMS = """claims:
  - {key: a, where: Table 2, says: oldqclaim, better: table2/fbt/*, than: table2/fcfd/*}
"""
FIGURE_2 = """networks:
  - {architecture: swin_t, letter: oldqletter, hierarchical: true}
  - {architecture: convnext_t, letter: B, hierarchical: true}
  - {architecture: vit_s, letter: E, hierarchical: false}
"""
PREPARED = {
    "config/config.yaml": [("scale: smoke", "scale: paper")],
    "config/tables/table2.yaml": [
        ("title: Table 2", "title: oldqtitle"),
        ("caption: FCFD", "caption: oldqcaption"),
        ("corner: Method", "corner: oldqcorner"),
        ("label: Our FBT", "label: oldqrow"),
        ("label: Swin-T ->", "label: oldqcolumn ->"),
    ],
    "config/tables/table2.reference.csv": [
        ('81.61,"FBT, appendix Table 2",primary,', "12.34,oldqsource,primary,oldqnote")
    ],
    "config/tables/table6.yaml": [
        ("caption: Training", "caption: oldqcosts Training"),
        ("label: DeiT-T", "label: oldqpair"),
        ("  - 0.07 G", "  - oldqremark 0.07 G"),
    ],
    "config/figures/figure1.yaml": [("caption: The", "caption: oldqtaxonomy The")],
    "config/figures/figure2.yaml": [
        ("caption: Features", "caption: oldqmaps Features"),
        ("title: Figure 2", "title: oldqheading"),
    ],
    "config/figures/similarity.yaml": [
        ("caption: Linear", "caption: oldqalike Linear"),
        ("title: Similarity", "title: oldqpairs"),
        ("  - {table: table2, row: fbt, column: convnext_t__swin_p}\n", ""),
    ],
    "config/figures/curves.yaml": [
        ("caption: Accuracy", "caption: oldqcurves Accuracy"),
        ("title: Training", "title: oldqtraining"),
    ],
    "config/architectures.yaml": [("title: Swin-T\n", "title: oldqnetwork\n")],
    "config/methods.yaml": [("title: FBT\n", "title: oldqmethod\n")],
    "fbt_paper/page/page.css": [(":root", "/* oldqpage */ :root")],
    "fbt_paper/tables/cost_table.py": [('1e6, "M"', '1e6, "oldqunit"')],
}
TABLE = ("tables/table2.csv", "tables/table2.md", "tables/table2.tex", "comparison.md", "index.html")
CURVES = tuple(f"figures/curves_table2{part}" for part in ("", "_losses", "_gaps"))
SIMILARITY = "figures/similarity_table2_fbt_swin_t__resnet18"


@dataclass(frozen=True)
class Change:
    """One thing shown: file and text before and after, what is read where it is shown, and these files."""

    file: str
    old: str
    new: str
    shown: tuple[str, ...]
    before: str = ""
    after: str = ""

    @property
    def values(self) -> tuple[str, str]:
        """What is read in the files before and after."""
        return self.before or self.old, self.after or self.new


def named(file: str, key: str, *shown: str) -> Change:
    """A text of a file that is made recognisable."""
    return Change(file, f"oldq{key}", f"newq{key}", shown)


YAML, COSTS, REFERENCE = (
    f"config/tables/{name}" for name in ("table2.yaml", "table6.yaml", "table2.reference.csv")
)
LABELLED = (*TABLE, "results.csv", *(f"{stem}.{end}" for stem in CURVES for end in ("pdf", "csv")))
COST_FILES = ("tables/table6.md", "tables/table6.tex", "comparison.md", "index.html")
ALL_PDF = (
    "figures/figure1.pdf",
    "figures/figure2.pdf",
    f"{SIMILARITY}.pdf",
    *(f"{stem}.pdf" for stem in CURVES),
)
CHANGES = {
    "score": Change(
        "config/config.yaml",
        "score: best ",
        "score: last ",
        (*TABLE, "results.csv", "figures/curves_table2_gaps.csv"),
        before="55.55",
        after="44.44",
    ),
    "name of the score": Change(
        "config/config.yaml",
        "score: best ",
        "score: last ",
        (
            "tables/table2.md",
            "tables/table2.tex",
            "comparison.md",
            "index.html",
            "figures/curves_table2_gaps.pdf",
        ),
        before="of the best epoch",
        after="of the last epoch",
    ),
    "seeds": Change(
        "config/scales/paper.yaml",
        "seeds: [0]",
        "seeds: [0, 1]",
        ("tables/table2.md", "tables/table2.tex", "index.html"),
        before="Seeds per cell: 1",
        after="Seeds per cell: 2",
    ),
    "title": named(
        YAML,
        "title",
        "tables/table2.md",
        "tables/table2.tex",
        "comparison.md",
        "index.html",
        *(f"{s}.pdf" for s in CURVES),
    ),
    "caption": named(YAML, "caption", "tables/table2.md", "tables/table2.tex", "comparison.md", "index.html"),
    "corner": named(YAML, "corner", "tables/table2.md", "tables/table2.tex", "index.html"),
    "row label": named(YAML, "row", *LABELLED),
    "column label": named(YAML, "column", *LABELLED),
    "printed number": Change(
        REFERENCE, "12.34", "23.45", (*TABLE, "results.csv", "figures/curves_table2_gaps.csv")
    ),
    "remark": named(REFERENCE, "note", "tables/table2.csv", "comparison.md", "results.csv", "index.html"),
    "source": named(REFERENCE, "source", "tables/table2.csv", "results.csv", "index.html"),
    "status": Change(
        REFERENCE,
        ",primary,",
        ",secondary,",
        ("tables/table2.md", "tables/table2.tex", "comparison.md", "index.html"),
        before="no such remark",
        after="as summarised by others",
    ),
    "caption of costs": named(COSTS, "costs", *COST_FILES),
    "label of costs": named(COSTS, "pair", *COST_FILES, "results.csv"),
    "footnote of costs": named(COSTS, "remark", *COST_FILES),
    "caption of figure 1": named(
        "config/figures/figure1.yaml", "taxonomy", "index.html", "figures/figure1.json"
    ),
    "caption of figure 2": named("config/figures/figure2.yaml", "maps", "index.html", "figures/figure2.json"),
    "title of figure 2": named(
        "config/figures/figure2.yaml",
        "heading",
        "index.html",
        "figures/figure2.pdf",
        "figures/figure2_numbers.pdf",
    ),
    "letter": named(
        "config/figures/figure2.yaml", "letter", "figures/figure2.pdf", "figures/figure2_numbers.pdf"
    ),
    "caption of similarity": named(
        "config/figures/similarity.yaml", "alike", "index.html", f"{SIMILARITY}.json"
    ),
    "title of similarity": named(
        "config/figures/similarity.yaml", "pairs", "index.html", f"{SIMILARITY}.pdf"
    ),
    "caption of curves": named("config/figures/curves.yaml", "curves", "index.html", f"{CURVES[0]}.json"),
    "title of curves": named("config/figures/curves.yaml", "training", "index.html", f"{CURVES[0]}.json"),
    "name of a network": named(
        "config/architectures.yaml", "network", "index.html", "figures/figure2.pdf", f"{SIMILARITY}.pdf"
    ),
    "name of a method": named("config/methods.yaml", "method", "index.html", "figures/figure1.pdf"),
    "claim": named("config/claims.yaml", "claim", "claims.csv", "claims.md"),
    "unit": named(
        "fbt_paper/tables/cost_table.py",
        "unit",
        "tables/table6.md",
        "tables/table6.tex",
        "results.csv",
        "index.html",
    ),
    "style of the page": named("fbt_paper/page/page.css", "page", "index.html"),
    "style of figures": Change(
        "fbt_paper/figures/style.mplstyle",
        "font.family: DejaVu Sans",
        "font.family: DejaVu Serif",
        ALL_PDF,
        before="DejaVuSans",
        after="DejaVuSerif",
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> WorkflowCopy:
    """Table 2 and Table 6 at scale paper with made-up results of two seeds, drawn and rendered with one."""
    copy = WorkflowCopy.make(tmp_path_factory.mktemp("stale") / "copy")
    for path in (copy.folder / "config/tables").iterdir():
        if not path.name.startswith(("table2.", "table6.")):
            path.unlink()
    for file, edits in PREPARED.items():
        for old, new in edits:
            copy.replace(file, old, new)
    (copy.folder / "config/claims.yaml").write_text(CLAIMS)
    figure = copy.folder / "config/figures/figure2.yaml"
    figure.write_text(re.sub(r"networks:.*", FIGURE_2, figure.read_text(), flags=re.S))
    write_made_up(copy)
    done = copy.snakemake("--cores", "2")
    assert done.returncode == 0, done.stdout[-5000:]
    assert not re.search(r"rule (train|extract_features|measure_cost|fetch_weights):", done.stdout)
    return copy


def write_made_up(copy: WorkflowCopy) -> None:
    """Runs of two seeds with other last than best epochs, counts, and extracted arrays."""
    flow = Flow({"seeds": [0, 1]}, copy.folder / "config")
    flow.results = str(copy.folder / flow.results)
    flow.runs = f"{flow.results}/runs"
    write_scale(flow)
    for run in flow.plan.tables["table2"].cells["fbt", "swin_t__resnet18"].runs:
        path = Path(flow.runs, run, "metrics.json")
        metrics = json.loads(path.read_text())
        metrics["best"]["top1"], metrics["last"]["top1"] = 55.55, 44.44
        path.write_text(json.dumps(metrics))
    for run in Path(flow.runs).iterdir():
        (run / "weights.safetensors").write_bytes(b"")
        for file in run.iterdir():
            os.utime(file, (1e9, 1e9))
    networks = [Shown(key, "", key, "", key != "vit_s") for key in ("swin_t", "convnext_t", "vit_s")]
    Path(flow.results, "figures").mkdir()
    np.savez(Path(flow.results, "figures/figure2.npz"), **made_up_arrays(2, networks))
    for name in FigurePlan(flow).names("similarity"):
        np.savez(Path(flow.results, f"figures/{name}.npz"), **made_up_matrices())


def read(path: Path) -> str:
    """What a reader finds in a file: of a PDF its text and fonts, of the page also what its buttons copy."""
    if path.suffix == ".pdf":
        return pdf_text(path.read_bytes())
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        text, data = re.search(
            r"(.*)<script type=.application/json. id=.data.>(.*?)</script>", text, re.S
        ).groups()
        text += "".join(
            content for copies in json.loads(data)["copies"].values() for content in copies.values()
        )
    return text


def pdf_text(content: bytes) -> str:
    """The texts of a PDF as matplotlib writes them (two bytes a letter), and the names of its fonts."""
    texts = [name.decode() for name in re.findall(rb"/BaseFont /(\S+)", content)]
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", content, re.S):
        try:
            drawn = zlib.decompress(stream.strip(b"\r\n"))
        except zlib.error:
            continue
        for block in re.findall(rb"BT\n(.*?)ET\n", drawn, re.S):
            letters = b"".join(re.findall(rb"\(((?:[^()\\]|\\.)*)\)", block, re.S))
            texts.append(re.sub(rb"\\(.)", rb"\1", letters, flags=re.S).decode("utf-16-be", errors="replace"))
    return " ".join(texts)


def digests(flow: Flow) -> dict[str, str]:
    """The digest in the params of the rule that makes each of the files."""
    figures = FigurePlan(flow)
    digest_of = {
        f"tables/{table}.{kind}": flow.shows([table])
        for table in flow.plan.tables
        for kind in ("csv", "md", "tex")
    }
    digest_of |= dict.fromkeys(("comparison.md", "results.csv"), flow.shows(flow.plan.all_tables))
    digest_of |= dict.fromkeys(("claims.csv", "claims.md"), ClaimPlan(flow).shows("claims"))
    drawn = {name: figures.shows(name) for name in figures.drawings}
    for change in CHANGES.values():
        for file in (file for file in change.shown if file.startswith("figures/")):
            owners = [name for name in drawn if Path(file).stem.startswith(name)]
            digest_of[file] = drawn[max(owners, key=len)]
    return {**digest_of, "index.html": figures.page_shows("index") + "".join(drawn.values())}


# the renderers' sources are those of the package, not of a copy
ALONE = [name for name, change in CHANGES.items() if change.file.startswith("config/")]


@pytest.mark.parametrize("name", ALONE)
def test_each_change_alone_changes_the_digests_of_the_files_that_show_it(copy, tmp_path, name):
    change = CHANGES[name]
    before = digests(Flow({}, copy.folder / "config"))
    changed = copy.clone_of_config(tmp_path / "changed")
    changed.replace(change.file, change.old, change.new)
    after = digests(Flow({}, changed.folder / "config"))
    assert [file for file in change.shown if before[file] == after[file]] == []
    assert before != after


def test_a_finished_workflow_has_nothing_to_do(copy):
    assert "Nothing to be done" in copy.snakemake("--cores", "2").stdout


@pytest.mark.slow
def test_after_changes_each_file_shows_the_new_values_and_none_the_old(copy):
    results = copy.folder / "results/paper"
    kinds = (".csv", ".md", ".tex", ".html", ".pdf", ".json")
    files = {
        str(path.relative_to(results)): path
        for path in results.rglob("*")
        if path.suffix in kinds and path.parent.name not in ("costs", "logs") and "runs" not in path.parts
    }
    before = {name: read(path) for name, path in files.items()}
    shown = [(name, file, change.values) for name, change in CHANGES.items() for file in change.shown]
    assert [
        (name, file) for name, file, (old, _) in shown if old not in before[file] and name != "status"
    ] == []
    for change in CHANGES.values():
        path = copy.folder / change.file
        path.write_text(path.read_text().replace(change.old, change.new))
    done = copy.snakemake("--cores", "2")
    assert done.returncode == 0, done.stdout[-5000:]
    assert not re.search(r"rule (train|extract_features|measure_cost|fetch_weights):", done.stdout), (
        "something is trained again"
    )
    after = {name: read(path) for name, path in files.items()}
    assert [(name, file) for name, file, (_, new) in shown if new not in after[file]] == []
    olds = {name: change.values[0] for name, change in CHANGES.items()}
    assert [(name, file) for name, old in olds.items() for file, text in after.items() if old in text] == []
    assert "Nothing to be done" in copy.snakemake("--cores", "2").stdout


def test_the_report_says_which_score_it_shows():
    from jinja2 import Template

    text = Path("workflow/report/workflow.rst").read_text()
    for score in ("best", "last"):
        config = {"scale": "paper", "score": score}
        assert f"score `{score}`" in Template(text).render(snakemake={"config": config})
