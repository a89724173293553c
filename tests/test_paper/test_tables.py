"""From metrics.json to CSV, Markdown, LaTeX and comparison.md."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from fbt_core.methods.registry import method_facts
from fbt_core.spec import ENGINE_REVISION
from fbt_paper.config.load import ConfigError, load
from fbt_paper.plan.runs import plan
from fbt_paper.tables import compare, render
from fbt_paper.tables.cost_table import CostResults, collect_costs
from fbt_paper.tables.frame import TableResults, as_csv, cells_of, collect, make_frame, rows_of
from fbt_paper.tables.latex import escape_latex, to_latex
from fbt_paper.tables.results import tidy
from fbt_paper.tables.write import write_table
from tests.test_paper.config_copy import ConfigCopy

CONFIG = load()
PLAN = plan(CONFIG)


def cell_of(*scores: float, **more: object):
    """A cell from one row per seed; `more` are further columns."""
    rows = [{"row": "a", "column": "b", "run": f"run{score}", "score": score} for score in scores]
    rows = rows or [{"row": "a", "column": "b"}]
    return cells_of(make_frame([{**row, **more} for row in rows])).loc["a", "b"]


def cell(table: TableResults, row: str, column: str):
    return table.cells.loc[row, column]


def scores(table: TableResults, row: str, column: str) -> list[float]:
    frame = table.frame
    return frame[(frame.row == row) & (frame.column == column)].score.dropna().tolist()


def write_metrics(runs: Path, run: str, top1: float, **changes) -> None:
    spec = PLAN.runs[run].model_dump(mode="json")
    content = {
        "run": run,
        "spec": spec,
        "best": {"epoch": 3, "top1": top1, "top5": 99.0},
        "last": {"epoch": 3, "top1": top1 - 1, "top5": 99.0},
        "execution": {"device": "cpu"},
        "provenance": {"versions": {"torch": "2.9", "timm": "1.0.31"}},
    }
    content.update(changes)
    (runs / run).mkdir(parents=True)
    (runs / run / "metrics.json").write_text(json.dumps(content))


@pytest.fixture
def runs(tmp_path) -> Path:
    """Made-up results of all runs: 80 % for every run, but Table 4's three seeds 60, 63 and 66 %."""
    folder = tmp_path / "runs"
    seeded = {run: PLAN.runs[run].seed for run in PLAN.tables["table4"].cells["mse_final", "top1"].runs}
    for run in PLAN.runs:
        write_metrics(folder, run, 60 + 3 * seeded[run] if run in seeded else 80.0)
    return folder


# ---------------------------------------------------------------- cells


def test_mean_deviation_and_gap():
    three = cell_of(60.0, 63.0, 66.0, printed=70.0)
    assert (three["mean"], three.deviation, three.gap) == (63.0, 3.0, -7.0)


def test_one_seed_has_no_deviation_and_an_empty_cell_no_gap():
    assert pd.isna(cell_of(60.0, printed=70.0).deviation)
    assert pd.isna(cell_of(60.0).gap)
    assert pd.isna(cell_of(printed=70.0).gap)


def test_table_4_has_three_seeds_with_mean_and_deviation(runs):
    table = collect(CONFIG, PLAN, "table4", runs)
    final = cell(table, "mse_final", "top1")
    assert (final["mean"], final.deviation, len(final.runs)) == (63.0, 3.0, 3)
    assert final.printed == 65.17
    assert scores(table, "teacher", "top1") == [80.0]


def test_the_average_gain_is_the_mean_over_the_pairs(runs):
    cells = PLAN.tables["cifar100"].cells
    for pair_and_method, top1 in (
        (("swin_t__resnet18", "kd"), 92.0),
        (("vit_s__resnet18", "kd"), 68.0 + 24.0),
    ):
        (run,) = cells[pair_and_method].runs
        (runs / run / "metrics.json").unlink()
        (runs / run).rmdir()
        write_metrics(runs, run, top1)
    gain = cell(collect(CONFIG, PLAN, "cifar100", runs), "average_gain_over_scratch", "kd")
    pairs = len(CONFIG.tables["cifar100"].rows)
    assert gain["mean"] == pytest.approx((12.0 + 12.0) / pairs)
    assert gain.printed == 3.12
    assert gain.note == f"mean of {pairs} pairs"


def test_a_missing_result_names_its_file(tmp_path):
    with pytest.raises(ConfigError, match=r"metrics\.json: the run is not finished"):
        collect(CONFIG, PLAN, "table5", tmp_path)


def test_a_broken_result_names_its_file(runs):
    run = PLAN.tables["table5"].runs[0]
    (runs / run / "metrics.json").write_text('{"best": {}')
    with pytest.raises(ConfigError, match=f"{run}/metrics.json: is no run's result"):
        collect(CONFIG, PLAN, "table5", runs)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (
            {"provenance": {"versions": {"torch": "2.6", "timm": "1.0.31"}}},
            "mixes versions of torch: 2.6, 2.9",
        ),
        ({"execution": {"device": "cuda"}}, "mixes devices: cpu, cuda"),
        ("engine", f"mixes revisions of the engine: {ENGINE_REVISION}, 99"),
        ("method", f"mixes revisions of fbt: {method_facts('fbt').revision}, 99"),
    ],
)
def test_a_table_that_mixes_revisions_or_versions_warns(runs, change, warning):
    run = PLAN.tables["table5"].runs[0]
    spec = PLAN.runs[run].model_dump(mode="json")
    if change == "engine":
        change = {"spec": {**spec, "engine_revision": 99}}
    if change == "method":
        change = {"spec": {**spec, "method": {**spec["method"], "revision": 99}}}
    (runs / run / "metrics.json").unlink()
    (runs / run).rmdir()
    write_metrics(runs, run, 80.0, **change)
    table = collect(CONFIG, PLAN, "table5", runs)
    assert warning in table.warnings
    assert f"**Warning:** {warning}" in compare.to_markdown([table], CONFIG.scale_label)


def test_same_circumstances_give_no_warning(runs):
    assert collect(CONFIG, PLAN, "table5", runs).warnings == []


@pytest.mark.parametrize(("score", "top1"), [("best", 80.0), ("last", 79.0), ("ema", 77.0)])
def test_the_score_is_a_setting_and_changes_no_run(runs, score, top1):
    run = PLAN.tables["table5"].runs[0]
    path = runs / run / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "ema": {"epoch": 2, "top1": 77.0}}))
    config = load(overrides={"score": score})
    assert plan(config).runs.keys() == PLAN.runs.keys()
    table = collect(config, PLAN, "table5", runs)
    assert table.frame[table.frame.run == run].score.tolist() == [top1]
    words = {"best": "the best epoch", "last": "the last epoch", "ema": "the averaged weights"}[score]
    assert f"Top-1 of {words}" in render.to_markdown(table)
    assert f"top-1 in % of {words}" in compare.to_markdown([table], CONFIG.scale_label)


def test_a_run_without_averaged_weights_counts_with_its_best(runs):
    table = collect(load(overrides={"score": "ema"}), PLAN, "table5", runs)
    assert set(table.cells["mean"]) == {80.0}


# ---------------------------------------------------------------- files


def hostile_table() -> TableResults:
    label = r"50% & L_{x} #1 | $x$ ~ a\b -> c < d ^ *e* `f` [g]"
    both = {"row": "a", "column": "b", "row_label": label, "column_label": label}
    both |= {"printed": 70.0, "status": "primary", "source": "somewhere"}
    return TableResults(
        key="table5",
        title="Table_5",
        caption="With _ and & and %",
        corner="Row",
        scale="smoke",
        scale_label=CONFIG.scale_label,
        rows=(("a", label),),
        columns=(("b", label),),
        frame=make_frame([{**both, "run": "x", "score": 60.0}, {**both, "run": "y", "score": 66.0}]),
    )


def spanned(line: str) -> int:
    """Columns that a line's cells span besides one each."""
    return sum(int(span) - 1 for span in re.findall(r"multicolumn\{(\d)\}", line))


def latex_problems(text: str) -> list[str]:
    """What LaTeX would stumble over: open braces, unescaped specials, lines of unequal cells."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    bare = re.sub(r"\\[\\{}$&#%_^~]|\\[a-zA-Z]+", "", body.replace(r"\\", "").replace(r"\width>", ""))
    problems = [] if bare.count("{") == bare.count("}") else ["braces"]
    problems += ["dollars"] if bare.count("$") % 2 else []
    bare = re.sub(r"\$[^$]*\$", "", bare)  # in mathematics _ and ^ are at home
    problems += (
        ["special"]
        if re.search(r"[#%^~|<>]", bare) or "_" in re.sub(r"label\{[^}]*\}|\{tab:[^}]*\}", "", bare)
        else []
    )
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    widths = {len(re.findall(r"(?<!\\)&", line)) + spanned(line) for line in lines}
    return problems + ([] if len(widths) == 1 else [f"widths {widths}"])


def test_latex_is_escaped_and_well_formed():
    text = to_latex(hostile_table())
    assert latex_problems(text) == []
    assert r"\toprule" in text and r"\midrule" in text and r"\bottomrule" in text
    assert r"63.00 $\pm$ 4.24 (70.00)" in text
    assert r"$\rightarrow$" in text


@pytest.mark.parametrize("key", [key for key, table in PLAN.tables.items() if table.kind == "accuracy"])
def test_every_table_renders_in_all_three_forms(runs, key, tmp_path):
    table = collect(CONFIG, PLAN, key, runs)
    paths = write_table(table, tmp_path / "tables")
    assert [path.name for path in paths] == [f"{key}.csv", f"{key}.md", f"{key}.tex"]
    lines = list(csv.DictReader(io.StringIO(paths[0].read_text())))
    assert len(lines) == len(table.cells)
    assert {line["scale"] for line in lines} == {"smoke"}
    assert "SMOKE" in paths[1].read_text() and "SMOKE" in paths[2].read_text()
    assert latex_problems(paths[2].read_text()) == []


def test_markdown_cannot_be_broken_by_a_label():
    text = render.to_markdown(hostile_table())
    (head, rule, row) = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in (head, rule, row)} == {3}


def test_the_csv_holds_numbers_source_and_runs(runs):
    text = render.to_csv(collect(CONFIG, PLAN, "table4", runs))
    line = next(line for line in csv.DictReader(io.StringIO(text)) if line["row"] == "mse_final")
    assert (line["top1"], line["deviation"], line["seeds"]) == ("63.00", "3.00", "3")
    assert (line["printed"], line["gap"], line["status"]) == ("65.17", "-2.17", "primary")
    assert len(line["runs"].split()) == 3


def test_the_comparison_shows_ours_and_paper_and_no_gap_of_unlike_things(runs):
    tables = [collect(CONFIG, PLAN, key, runs) for key in ("table4", "table5")]
    text = compare.to_markdown(tables, CONFIG.scale_label)
    assert "| L\\_MSE in the final features | Top-1 accuracy | 63.00 ± 3.00 | 65.17 | 3 |" in text
    assert text.count("SMOKE") >= 3 and "| Gap |" not in text
    assert "| ViT Block | Swin-T -\\> ResNet18 | 80.00 ± 0.57† | 81.05 | 1 | +0.00 |" in text


def test_an_unconfirmed_number_is_marked_and_an_unknown_one_stays_empty(runs):
    table = collect(CONFIG, PLAN, "cifar100", runs)
    assert render.printed(cell(table, "swin_t__resnet18", "kd")) == "78.74*"
    assert render.printed(cell(table, "swin_t__resnet18", "dkd")) == "80.26+"
    assert render.printed(cell(table, "mixer_b16__resnet18", "fbt")) == ""
    assert "summarised by others" in render.to_markdown(table)


def test_what_others_measured_stands_beside_the_printed_number_and_has_no_gap(runs):
    table = collect(CONFIG, PLAN, "cifar100", runs)
    by_others = next(line for line in rows_of(table.cells) if line.Index == ("convnext_t__deit_t", "kd"))
    ours = render.measured(by_others)
    assert str(render.cell_text(by_others)) == f"{ours} (72.99*; 70.78^, 67.94^)"
    assert by_others.gap == pytest.approx(by_others.mean - 72.99)
    assert "others measured 70.78, 67.94" in render.note_of(by_others) and "#19" in render.note_of(by_others)
    text = render.to_markdown(table)
    assert "\n\n^ measured by others with a method's released code; no printed number" in text
    assert "by others" not in render.to_markdown(collect(CONFIG, PLAN, "table5", runs))


def test_a_students_score_from_scratch_is_printed_for_each_of_its_teachers():
    for name, count in (("cifar100", 12), ("imagenet", 15)):
        rows = [
            line.row
            for line in CONFIG.references[name]
            if line.column == "scratch" and line.status != "independent"
        ]
        assert len(rows) == len(set(rows)) == count


# ---------------------------------------------------------------- Table 6


def lines_of(costs: CostResults, pair: str) -> pd.DataFrame:
    """The lines of a pair by (part, quantity)."""
    return costs.frame[costs.frame.row == pair].set_index(["part", "quantity"])


def counts(parameters: int, macs: int) -> dict:
    return {rule: {"parameters": parameters, "macs": macs} for rule in ("paper_rule", "true")}


@pytest.fixture
def costs(tmp_path):
    rows = {
        row.key: {
            "student": counts(11_689_512, 1_824_033_792),
            "ofa_branch": counts(4_920_736, 98_431_488),
            "fbt_branch": {block: counts(387_648, 75_826_864) for block in ("swin", "swinv2", "vit")},
        }
        for row in CONFIG.tables["table6"].rows
    }
    path = tmp_path / "table6.json"
    path.write_text(json.dumps({"rows": rows}))
    return collect_costs(CONFIG, "table6", path)


def test_table_6_marks_the_digit_that_does_not_come_out(costs):
    lines = lines_of(costs, "deit_t__resnet18")
    parts = ("student", "ofa_branch")
    assert all(lines.gap[part, quantity] == 0 for part in parts for quantity in ("params", "flops"))
    assert lines.gap["fbt_branch_swinv2", "params"] == 0
    assert lines.gap["fbt_branch_swinv2", "flops"] != 0
    assert lines.printed["fbt_branch_vit"].isna().all()
    text = render.to_markdown(costs)
    assert "0.07 G (a) | 0.08 G" in text and "0.0758 G" in text


def test_table_6_renders_and_is_no_smoke_number(costs, tmp_path):
    csv_path, md_path, tex_path = write_table(costs, tmp_path)
    assert len(list(csv.DictReader(io.StringIO(csv_path.read_text())))) == 5 * len(
        CONFIG.tables["table6"].rows
    )
    assert "SMOKE" not in md_path.read_text() + tex_path.read_text()
    assert latex_problems(tex_path.read_text()) == []


def test_the_comparison_gives_table_6_ours_paper_and_gap_at_full_size(costs, runs):
    text = compare.to_markdown([collect(CONFIG, PLAN, "table5", runs), costs], CONFIG.scale_label)
    section = text.partition("## Table 6")[2]
    assert section.startswith(" (full size)\n\nCounted at full size")
    assert "SMOKE" not in section
    assert "| DeiT-T -\\> ResNet18 | Student, parameters | 11.69 M | 11.69 M | +0.00 |" in section
    assert "| FBT branch (Swin-V2 block), macs | 0.08 G | 0.07 G (a) | +0.01 |" in section
    assert "| FBT branch (ViT block), macs | 0.08 G |  |  |" in section


@pytest.mark.parametrize("lost", ["fbt_branch_flops", "student_params", "fbt_branch"])
def test_table_6_leaves_a_cell_empty_where_nothing_is_printed(costs, tmp_path, lost):
    copy = ConfigCopy(tmp_path / "copy")
    path = copy.path("tables/table6.reference.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith(f"deit_t__resnet18,{lost}")))
    table = collect_costs(copy.load(), "table6", tmp_path / "table6.json")
    part = "student" if lost.startswith("student") else "fbt_branch_swinv2"
    printed = lines_of(table, "deit_t__resnet18").printed[part]
    assert printed.count() == (0 if lost == "fbt_branch" else 1)
    write_table(table, tmp_path / "tables")
    compare.to_markdown([table], CONFIG.scale_label)


def test_a_row_that_is_not_counted_yet_says_what_to_run(costs, tmp_path):
    copy = ConfigCopy(tmp_path / "copy")
    row = "  - {key: new, label: New, teacher: swin_t, student: resnet18}\n"
    copy.replace("tables/table6.yaml", "rows:\n", f"rows:\n{row}")
    with pytest.raises(ConfigError, match=r"as it is now \('new'\); `python -m fbt_core.measure.cost table6"):
        collect_costs(copy.load(), "table6", tmp_path / "table6.json")


def test_a_table_that_is_not_counted_yet_says_what_to_run(tmp_path):
    with pytest.raises(ConfigError, match=r"is not counted yet; `python -m fbt_core.measure.cost table6"):
        collect_costs(CONFIG, "table6", tmp_path / "table6.json")


def test_table_3_cites_takd_and_mtpd(runs):
    text = render.to_markdown(collect(CONFIG, PLAN, "table3", runs))
    assert "Improved Knowledge Distillation via Teacher Assistant" in text
    assert "Multi-Teacher Progressive Distillation" in text


def test_a_broken_count_names_its_file(tmp_path):
    (tmp_path / "table6.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"table6\.json: is no count of table6"):
        collect_costs(CONFIG, "table6", tmp_path / "table6.json")


# ---------------------------------------------------------------- the tidy frame


def test_all_results_are_one_frame_with_a_row_per_seed(costs, runs):
    tables = [collect(CONFIG, PLAN, key, runs) for key in ("table4", "cifar100")]
    frame = pd.read_csv(io.StringIO(as_csv(tidy([*tables, costs]))))
    seeds = frame[(frame.table == "table4") & (frame.row == "mse_final")]
    assert (seeds.seed.tolist(), seeds.score.tolist()) == ([0, 1, 2], [60.0, 63.0, 66.0])
    assert set(seeds.printed) == {65.17} and set(seeds.status) == {"primary"}
    assert seeds.run.nunique() == 3 and set(seeds.device) == {"cpu"} and set(seeds.timm) == {"1.0.31"}
    assert set(seeds.engine_revision) == {ENGINE_REVISION} and set(seeds.method) == {"fitnet"}
    student = frame[(frame.table == "table6") & (frame.column == "student_params")]
    assert student.score.iloc[0] == pytest.approx(11.6895, abs=1e-4) and student.unit.iloc[0] == "M"


@pytest.mark.parametrize("text", ["=1+1", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "-x"])
def test_no_text_in_a_csv_is_a_formula(text):
    table = hostile_table()
    table.frame["row_label"] = text
    for content in (render.to_csv(table), as_csv(table.frame)):
        row = next(csv.DictReader(io.StringIO(content)))
        assert row["row_label"] == f"'{text}"
    assert "-7.00" in render.to_csv(table)  # a number stays a number


# ---------------------------------------------------------------- LaTeX for authors

LABELS = [
    "[first] *starred",
    "*alone",
    "α, β and Γ; Ω ≤ 1 ≥ 0 ≠ 2 ≈ 3",
    "naïve Größe, Łódź? Šimon, œuvre – on",
    "10 µm × 3 ± 1 → 5° −1 x² “quoted” it’s…",
    'a "quoted" -- dash --- {brace} $x$ % & # _ ^ ~ \\ < > |',
    "L_MSE above L_InfoNCE in K_t",
]


def test_any_label_compiles(tmp_path):
    """Each as row, column, corner and caption, of two paragraphs as well; one document."""
    tables = []
    for label in LABELS:
        table = hostile_table()
        tables.append(
            replace(
                table,
                rows=(("a", label),),
                columns=(("b", label),),
                corner=label,
                caption=f"{label}\n\nA second paragraph: {label}",
            )
        )
    text = compile_latex(tmp_path, "\n".join(to_latex(table) for table in tables))
    assert "Overfull" not in text


def test_no_table_is_wider_than_its_text_block(runs, costs, tmp_path):
    tables = [collect(CONFIG, PLAN, key, runs) for key in ("table2", "table4", "cifar100", "imagenet")]
    both = [to_latex(table, paper) for table in [*tables, costs] for paper in (True, False)]
    assert "Overfull" not in compile_latex(tmp_path, "\n".join(both))


def compile_latex(folder: Path, tables: str) -> str:
    """What pdflatex says of a document with these tables."""
    if shutil.which("pdflatex") is None:
        message = "pdflatex is not installed (Debian: texlive-latex-base texlive-latex-recommended)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    packages = "\\usepackage{booktabs,graphicx}"
    document = f"\\documentclass{{article}}\n{packages}\n\\begin{{document}}\n{tables}\n\\end{{document}}\n"
    (folder / "page.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


@pytest.mark.parametrize("letter", ["你", "😀", "я"])
def test_a_letter_that_pdflatex_cannot_print_is_named_on_top_of_the_file(letter, tmp_path, runs):
    """The table is written all the same: XeLaTeX prints it, and so do CSV and Markdown."""
    copy = ConfigCopy(tmp_path)
    copy.replace("tables/table4.yaml", "corner: Loss", f"corner: Loss {letter}")
    config = copy.load()
    text = to_latex(collect(config, plan(config), "table4", runs))
    first = text.splitlines()[0]
    assert first.startswith(f"% pdfLaTeX cannot print U+{ord(letter):04X} (")
    assert "use XeLaTeX or LuaLaTeX, or Latin letters" in first and f"Loss {letter}" in text


def test_what_controls_a_terminal_is_no_letter():
    assert escape_latex("a\x07b") == "ab"


def test_labels_are_mathematics_and_a_number_is_no_title(runs):
    text = to_latex(collect(CONFIG, PLAN, "table4", runs))
    assert r"$\mathcal{L}_{\mathrm{MSE}}$ in the final features & " in text
    assert "Table 4" not in text and r"\caption{SMOKE: " in text and r"{\footnotesize" in text
    assert escape_latex("K_t") == r"$K_{\mathrm{t}}$"


def test_a_table_for_a_paper_of_ones_own_has_no_printed_number(runs, costs, tmp_path):
    table = collect(CONFIG, PLAN, "table5", runs)
    texts = [path.read_text() for path in write_table(table, tmp_path, paper=False)]
    assert len(texts) == 2 and all("80.00" in text and "81.05" not in text for text in texts)
    assert not any("printed" in text for text in texts)
    latex, markdown = to_latex(costs, paper=False), render.to_markdown(costs, paper=False)
    assert "paper &" not in latex and r"\multicolumn{5}{l}" in latex and latex_problems(latex) == []
    assert "Params (its rule)" in markdown and "(paper)" not in markdown


def test_table_6_has_groups_and_its_units_in_the_head(costs):
    text = to_latex(costs)
    assert r"\multicolumn{3}{c}{Parameters (M)}" in text and r"\cmidrule(lr){2-4}" in text
    assert text.count(r"\midrule") == text.count(r"\multicolumn{7}{l}") == len(CONFIG.tables["table6"].rows)
    counts_of_l2g = r"0.39 & 0.39 & 0.39 & 0.07\textsuperscript{a} & 0.08 & 0.08 \\"
    assert rf"\quad FBT branch (Swin-V2 block) & {counts_of_l2g}" in text
