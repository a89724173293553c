"""Claims: what may stand in config/claims.yaml, and the verdicts from made-up runs whose truth is known."""

import csv
import io
import json

import numpy as np
import pytest

from fbt_core.errors import UserError
from fbt_paper.claims.power import plan_claims
from fbt_paper.claims.show import counts, intervals_to_csv, to_csv, to_markdown
from fbt_paper.claims.verdicts import Evidence, judge_all
from fbt_paper.cli import main
from fbt_paper.config.claims import Above, load_claims, pairs
from fbt_paper.config.load import load
from fbt_paper.plan.claims import ClaimPlan
from fbt_paper.plan.runs import plan
from fbt_paper.plan.targets import Flow
from tests.test_paper.config_copy import ConfigCopy
from tests.test_paper.made_up_results import write_costs, write_run

IMAGES = 1_000
COMMON = {"where": "appendix", "says": "a statement"}


@pytest.fixture
def copy(tmp_path):
    return ConfigCopy(tmp_path / "config")


def write_claims(copy, *claims):
    """A claims file with these items, and the configuration that holds it."""
    items = [{"key": f"claim_{i}", **COMMON, **claim} for i, claim in enumerate(claims)]
    copy.write("claims.yaml", json.dumps({"claims": items}))
    return copy.load()


def write_cell(evidence, path, top1, seed_shift=0.0):
    """Runs of a cell that get a share of the images right, the same ones for every cell."""
    table, row, column = path.split("/")
    for number, run in enumerate(evidence.plan.tables[table].cells[row, column].runs):
        spec = evidence.plan.runs[run]
        folder = write_run(evidence.results / "runs", spec, top1=top1)
        right = round(IMAGES * (top1 + seed_shift * number) / 100)
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["last"]["top1"] = 100 * right / IMAGES
        (folder / "metrics.json").write_text(json.dumps(metrics))
        predictions = np.where(np.arange(IMAGES) < right, 1, 2).astype(np.uint8)
        np.savez(folder / "predictions.npz", last=predictions, labels=np.ones(IMAGES, np.uint8))


def judge(config, tmp_path, cells):
    """The verdicts when the named cells have these top-1 values."""
    evidence = Evidence(config, plan(config), tmp_path / "results")
    for path, top1 in cells.items():
        write_cell(evidence, path, top1)
    return judge_all(load_claims(config), evidence)


POOLED, FINAL, SCRATCH = (
    "table4/mse_final_pooled/top1",
    "table4/mse_final/top1",
    "table4/student_from_scratch/top1",
)


@pytest.mark.parametrize(
    ("better", "than", "verdict"),
    [(80.0, 75.0, "holds"), (75.0, 80.0, "contradicted"), (80.0, 80.1, "undecided")],
)
def test_one_cell_above_another(copy, tmp_path, better, than, verdict):
    config = write_claims(copy, {"better": POOLED, "than": FINAL})
    (judgement,) = judge(config, tmp_path, {POOLED: better, FINAL: than})
    assert judgement.verdict == verdict
    assert judgement.sources == ("seeds", "images")
    assert "printed +11.62" in judgement.words


def test_by_at_least_moves_the_threshold(copy, tmp_path):
    claims = [{"better": POOLED, "than": FINAL, "by_at_least": least} for least in (2.0, 8.0)]
    judgements = judge(write_claims(copy, *claims), tmp_path, {POOLED: 80.0, FINAL: 75.0})
    assert [judgement.verdict for judgement in judgements] == ["holds", "contradicted"]


def test_on_every_pair_holds_only_if_each_does(copy, tmp_path):
    config = write_claims(copy, {"better": "table2/fbt/*", "than": "table2/fcfd/*"})
    names = [column.key for column in config.tables["table2"].columns]
    cells = {f"table2/fbt/{name}": 85.0 for name in names} | {f"table2/fcfd/{name}": 80.0 for name in names}
    (judgement,) = judge(config, tmp_path, cells)
    assert judgement.verdict == "holds" and judgement.words.startswith("holds on 3 of 3")
    assert judgement.sources == ("images",)
    assert "; ViT-S -> ResNet18 +5.00 [" in judgement.words
    lines = list(csv.DictReader(io.StringIO(intervals_to_csv([judgement]))))
    assert [line["pair"] for line in lines] == [column.label for column in config.tables["table2"].columns]
    assert {(line["difference"], line["unit"]) for line in lines} == {("5.000", "points")}
    assert [line["printed"] for line in lines] == ["3.27", "28.35", "3.05"]
    (judgement,) = judge(config, tmp_path, {**cells, f"table2/fbt/{names[1]}": 79.9})
    assert judgement.verdict == "undecided" and judgement.words.startswith("holds on 2 of 3")
    (judgement,) = judge(config, tmp_path, {**cells, f"table2/fbt/{names[1]}": 70.0})
    assert judgement.verdict == "contradicted"


def test_about_the_same_needs_a_narrow_interval_inside_the_band(copy, tmp_path):
    claims = [{"same": [POOLED, FINAL], "within": width, "because": "a test"} for width in (3.0, 0.2)]
    config = write_claims(copy, *claims)
    judgements = judge(config, tmp_path, {POOLED: 80.0, FINAL: 79.6})
    assert [judgement.verdict for judgement in judgements] == ["holds", "undecided"]
    judgements = judge(config, tmp_path, {POOLED: 80.0, FINAL: 70.0})
    assert [judgement.verdict for judgement in judgements] == ["contradicted", "contradicted"]


def test_an_order_is_as_good_as_its_weakest_step(copy, tmp_path):
    config = write_claims(copy, {"best_first": [POOLED, FINAL, SCRATCH]})
    (judgement,) = judge(config, tmp_path, {POOLED: 85.0, FINAL: 80.0, SCRATCH: 75.0})
    assert judgement.verdict == "holds"
    (judgement,) = judge(config, tmp_path, {POOLED: 85.0, FINAL: 75.0, SCRATCH: 80.0})
    assert judgement.verdict == "contradicted"


def test_rises_and_falls_needs_both_signs(copy, tmp_path):
    config = write_claims(copy, {"rises_and_falls": ["table5/swin_block/*", "table5/vit_block/*"]})
    first, second, third = (f"table5/%s/{column.key}" for column in config.tables["table5"].columns)
    cells = {cell % "swin_block": top1 for cell, top1 in ((first, 85), (second, 75), (third, 80))}
    cells |= {cell % "vit_block": 80 for cell in (first, second, third)}
    (judgement,) = judge(config, tmp_path, cells)
    assert judgement.verdict == "holds"
    (judgement,) = judge(config, tmp_path, cells | {second % "swin_block": 85, third % "swin_block": 85})
    assert judgement.verdict == "contradicted"
    (judgement,) = judge(config, tmp_path, cells | {second % "swin_block": 79.9})
    assert judgement.verdict == "undecided"


def test_a_mean_over_pairs_counts_shared_images_once(copy, tmp_path):
    config = write_claims(copy, {"better": "table2/fbt/*", "than": "table2/fcfd/*", "on_average": True})
    names = [column.key for column in config.tables["table2"].columns]
    cells = {f"table2/fbt/{n}": 80.0 + i for i, n in enumerate(names)} | {
        f"table2/fcfd/{n}": 79.0 for n in names
    }
    (judgement,) = judge(config, tmp_path, cells)
    (part,) = judgement.parts
    assert part.measured.mean == pytest.approx(2.0)
    # every pair differs on the same hard images, so three pairs are hardly surer than one
    assert part.measured.error > 0.9 * np.sqrt(0.02 * 0.98 / IMAGES) * 100 * 0.8
    assert part.printed == pytest.approx((3.27 + 28.35 + 3.05) / 3)


def test_a_run_that_is_not_finished_leaves_its_claim_open(copy, tmp_path):
    config = write_claims(copy, {"better": POOLED, "than": FINAL})
    (judgement,) = judge(config, tmp_path, {POOLED: 80.0})
    assert judgement.verdict == "not measured"
    assert judgement.words == "3 runs are not finished"


def test_a_ratio_of_counted_numbers(copy, tmp_path):
    ratio = {"ratio": "table6/*/fbt_branch_params", "of": "table6/*/ofa_branch_params"}
    config = write_claims(copy, {**ratio, "between": [0.5, 1.5]}, {**ratio, "between": [0.05, 0.15]})
    evidence = Evidence(config, plan(config), tmp_path / "results")
    assert {judgement.verdict for judgement in judge_all(load_claims(config), evidence)} == {"not measured"}
    rows = tuple(row.key for row in config.tables["table6"].rows)
    write_costs(tmp_path / "results" / "costs" / "table6.json", rows, config.tables["table6"].blocks)
    judgements = judge_all(load_claims(config), evidence)
    assert [judgement.verdict for judgement in judgements] == ["holds", "contradicted"]
    assert judgements[0].parts[0].printed == pytest.approx(0.39 / 4.92)


def test_what_a_figure_observed(copy, tmp_path):
    config = write_claims(copy, {"figure": "figure2", "observation": "locality"})
    folder = tmp_path / "results" / "figures"
    folder.mkdir(parents=True)
    header = "statement,quantity,first_group,first,second_group,second,holds,positions\n"
    (folder / "figure2_claims.csv").write_text(f"{header}CNN local,locality,CNN,0.2,others,0.5,False,4 x 4\n")
    (judgement,) = judge_all(load_claims(config), Evidence(config, plan(config), tmp_path / "results"))
    assert judgement.verdict == "contradicted" and "CNN 0.200, others 0.500" in judgement.words


def test_the_shipped_claims_are_about_cells_that_exist():
    config = load()
    claims = load_claims(config)
    assert {claim.where.split(",")[0].split(" ")[0] for claim in claims} == {"appendix", "main"}
    for claim in claims:
        if isinstance(claim, Above):
            for better, than in pairs(config, (claim.better, claim.than)).values():
                assert better != than and "*" not in better + than


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"better": "tabel4/a/top1", "than": FINAL}, "unknown table 'tabel4'.*did you mean 'table4'"),
        ({"better": "table4/mse_fnal/top1", "than": FINAL}, "no row 'mse_fnal'.*did you mean 'mse_final'"),
        ({"better": "table4/mse_final/top2", "than": FINAL}, "no column 'top2'.*did you mean 'top1'"),
        ({"better": "table2/fbt/*", "than": "table2/fcfd/swin_t__resnet18"}, "in every cell of the claim"),
        ({"better": POOLED, "than": FINAL, "by_at_lest": 1.0}, "by_at_lest.*by_at_least"),
        ({"better": POOLED}, "than"),
        ({"rises_and_falls": [POOLED, FINAL]}, "one pair cannot do both"),
        ({"ratio": POOLED, "of": FINAL, "between": [0.0, 1.0]}, "needs a table of kind cost"),
        ({"better": "table6/*/student_params", "than": "table6/*/student_flops"}, "shows no accuracies"),
        ({"figure": "figure2", "observation": "localty"}, "locality"),
    ],
)
def test_a_mistake_in_a_claim_is_named(copy, claim, message):
    with pytest.raises(UserError, match=rf"config/claims.yaml: claims\[0\].*{message}"):
        load_claims(write_claims(copy, claim))


def test_a_key_is_used_once(copy):
    claim = {"better": POOLED, "than": FINAL, "key": "same"}
    with pytest.raises(UserError, match=r"claims\[1\].key: the key 'same' is used twice"):
        load_claims(write_claims(copy, claim, claim))


def test_tables_of_verdicts(copy, tmp_path):
    config = write_claims(copy, {"better": POOLED, "than": FINAL, "says": "a | b", "note": "a note"})
    judgements = judge(config, tmp_path, {POOLED: 80.0, FINAL: 75.0})
    (line,) = csv.DictReader(to_csv(judgements).splitlines())
    assert (line["verdict"], line["chance"], line["note"]) == ("holds", "seeds and images", "a note")
    text = to_markdown(judgements, "made-up runs")
    assert "1 holds, 0 contradicted, 0 undecided, 0 not measured. Measured on: made-up runs." in text
    assert "a \\| b<br>*a note*" in text
    assert counts(judgements)["holds"] == 1


def test_the_verdicts_are_made_from_the_results_of_their_own_tables(copy):
    flow = Flow({}, copy.folder)
    claims = ClaimPlan(flow)
    main_page, grid = ({claim.key for claim in claims.of(name)} for name in ("claims", "claims_grid"))
    assert main_page | grid == {claim.key for claim in claims.claims} and not main_page & grid
    inputs = claims.inputs("claims")
    runs = {run for table in ("table2", "table3", "table4", "table5") for run in flow.plan.tables[table].runs}
    shown = {f"results/smoke/runs/{run}/metrics.json" for run in runs}
    assert {file for file in inputs if file.endswith("metrics.json")} < shown
    assert {
        "config/claims.yaml",
        "config/tables/table2.reference.csv",
        "results/smoke/costs/table6.json",
    } < set(inputs)
    assert "results/smoke/figures/figure2_claims.csv" in inputs


def test_a_claim_is_one_item_and_its_verdict_one_command(copy, tmp_path, monkeypatch, capsys):
    write_claims(copy, {"better": POOLED, "than": FINAL})
    monkeypatch.chdir(tmp_path)
    assert main(["--config", str(copy.folder), "judge-claims", "claims"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"results/smoke/claims{ending}" for ending in ("_intervals.csv", ".csv", ".md", ".tex")
    ]
    assert "not measured" in (tmp_path / "results/smoke/claims.md").read_text()


def test_planning_says_what_the_seeds_can_show(capsys):
    assert main(["plan", "--claims", "table4", "table5"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["infonce_above_mse"].split()[1:4] == ["3", "5000", lines["infonce_above_mse"].split()[3]]
    assert lines["infonce_above_mse"].split()[4] == "1.22"
    assert "(images alone)" in lines["blocks_differ_by_pair"]
    assert "fbt_above_fcfd" not in lines and "a_tenth_of_ofas_parameters" not in lines


def test_a_smaller_printed_difference_needs_more_seeds(copy):
    infonce = {"better": "table4/infonce_final_pooled/top1", "than": POOLED}
    write_claims(copy, {"better": POOLED, "than": FINAL}, infonce)
    claims = ClaimPlan(Flow({}, copy.folder))
    wide, narrow = plan_claims(claims, claims.claims)
    assert (wide.printed, narrow.printed) == (pytest.approx(11.62), pytest.approx(1.22))
    assert wide.seeds_needed == 2 and narrow.seeds_needed == 11
    assert wide.smallest == narrow.smallest
