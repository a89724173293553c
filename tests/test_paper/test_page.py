"""The results page from made-up results: what it says, and that nothing in it asks the network."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from fbt_paper.figures import draw, features
from fbt_paper.page import content, evidence
from fbt_paper.page.build import embed, write_page
from fbt_paper.plan.figures import FigurePlan
from fbt_paper.plan.targets import Flow
from fbt_paper.tables.results import collect_tables
from tests.test_paper.config_copy import ConfigCopy
from tests.test_paper.made_up_results import PIXEL, make_history, write_scale
from tests.test_paper.page_results import figure_files, write_pixels, write_results
from tests.test_workflow.workflow_copy import WorkflowCopy


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return write_results(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def page(flow: Flow) -> str:
    return write_page(flow, "index", write_pixels(FigurePlan(flow))).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(page: str) -> dict:
    return read_data(page)


def read_data(page: str) -> dict:
    """What the page's script works on, with the parts that runs share put back into each."""
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])

    def whole(value):
        if not isinstance(value, dict):
            return value
        return data["shared"][value["="]] if "=" in value else {k: whole(v) for k, v in value.items()}

    return {**data, "runs": {run: whole(record) for run, record in data["runs"].items()}}


def test_no_address_in_the_page_leads_to_a_network(page):
    # What a reader may choose to follow is a link; all that a browser fetches by itself is inside.
    links = re.findall(r'<a href="(https://[^"]*)"', page)
    assert links == ["https://arxiv.org/abs/2410.12342", "https://github.com/liguopeng0923/FBT"]
    addresses = [a for a in re.findall(r'(?:src|href|action|poster)="([^"]*)"', page) if a not in links]
    assert addresses
    assert all(address.startswith(("#", "data:", "figures/")) for address in addresses)
    assert not re.search(r'(?:src|action|poster)="figures/', page)  # links for people, which nothing loads
    assert not re.search(r"url\((?!['\"]?data:)|@import|fetch\(|XMLHttpRequest|<iframe|<base", page)


def test_every_table_of_the_scale_is_there_as_printed(flow, page):
    for key in flow.plan.all_tables:
        table = flow.config.tables[key]
        section = re.search(rf'<section id="{key}".*?</section>', page, re.S)[0]
        assert table.title in section
        assert section.count('<th scope="row">') >= len(table.rows)
        columns = {"cost": 8, "recipes": 9}.get(table.kind) or len(table.columns) + 1
        assert section.count('<th scope="col"') == columns


def test_a_cell_says_ours_and_paper_and_has_its_gap_for_the_switch(flow, page):
    shown = collect_tables(flow, ["table2"])[0].cells.loc["fbt", "swin_t__resnet18"]
    cell = re.search(r'<button[^>]*data-id="table2/fbt/swin_t__resnet18".*?</button>', page, re.S)[0]
    text = " ".join(re.sub(r"<[^>]+>", " ", cell).split())
    assert f"ours {shown['mean']:.2f}" in text
    assert "paper 81.61" in text
    assert "gap" not in text
    assert f'data-gap="{shown.gap}"' in page and f'data-paper="{shown.printed}"' in page
    assert f'data-runs="{shown.runs[0]}"' in cell


def test_seeds_give_a_deviation(page):
    cell = re.search(r'<button[^>]*data-id="table4/mse_final/top1".*?</button>', page, re.S)[0]
    assert re.search(r"± \d+\.\d\d", cell)
    assert len(re.search(r'data-runs="([^"]*)"', cell)[1].split()) == 3


def test_each_run_brings_spec_recipe_versions_code_time_and_log(flow, data):
    shown = {run for key in flow.plan.all_tables for run in flow.plan.tables[key].runs}
    assert set(data["runs"]) == set(flow.plan.needed(shown)) > shown  # teachers that no cell shows, too
    run = next(iter(data["runs"].values()))
    epochs = run["spec"]["recipe"]["epochs"]
    assert run["versions"]["torch"] == "2.14.1" and run["git_sha"].startswith("c0ffee")
    assert run["seconds"] == 40.0 and run["seed"] == 0
    assert (run["parameters"], run["weights_sha256"]) == (12345, "ab" * 32)
    assert "null" not in json.dumps([run["spec"] for run in data["runs"].values()])
    assert run["log"][-1].startswith(f"epoch {epochs}")
    assert run["curves"]["epoch"] == list(range(1, epochs + 1))


def test_it_says_what_it_is(page):
    line = re.sub(r"<[^>]+>", " ", re.search(r'<p class="facts">.*?</p>', page, re.S)[0])
    assert "scale smoke" in " ".join(line.split())
    assert "recipe set smoke" in " ".join(line.split())
    assert "results of 2026-11-22" in " ".join(line.split())
    assert "These numbers are not the paper's" in re.search(r'<p class="smoke".*?</p>', page, re.S)[
        0
    ].replace("&#39;", "'")


@pytest.mark.parametrize("recipes", ["ofa", "as_printed"])
def test_at_scale_paper_it_says_which_recipes_and_nothing_of_smoke(recipes):
    flow = Flow({"scale": "paper", "recipes": recipes})
    facts = content.facts(
        flow, {"run": {"finished": "2026-11-22T21:00:40", "git_sha": None, "git_dirty": None}}
    )
    assert facts == {"scale": "paper", "recipe set": recipes, "runs": "1", "results of": "2026-11-22"}


def test_the_page_of_the_grids(tmp_path):
    flow = write_results(tmp_path, page="grid")
    page = write_page(flow, "grid", write_pixels(FigurePlan(flow), "grid")).read_text(encoding="utf-8")
    for key in flow.plan.target("grid"):
        assert f'<section id="{key}"' in page
    drawings = FigurePlan(flow).drawings
    kinds = [drawings[name].kind for name in FigurePlan(flow).drawn("grid")]
    assert page.count("data-curves=") == kinds.count("curves") >= 4
    assert page.count("<img") == len(kinds) - kinds.count("curves")
    assert len(page) < 2_000_000
    section = re.search(r'<section id="cifar100".*?</section>', page, re.S)[0]
    columns = flow.config.tables["cifar100"].columns
    heads = list(map(html.unescape, re.findall(r'data-column="\d+">([^<]+)<', section)))
    assert heads[1:4] == ["FBT", "Scratch", "Teacher"] and sorted(heads[4:]) == sorted(
        column.label
        for column in flow.config.tables["cifar100"].columns
        if column.key not in ("fbt", "scratch", "teacher")
    )
    groups = re.findall(r'scope="colgroup" colspan="(\d+)">([^<]+)<', section)
    assert sum(int(count) for count, _ in groups) == len(columns) and ("3", "FBT and baselines") in groups
    summary = re.search(r'<table class="summary">.*?</table>', section, re.S)[0]
    assert summary.count('<th scope="row">') == len(columns) - 2 and re.search(
        r"\[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]", summary
    )
    assert 'href="figures/curves_cifar100_losses.csv"' in page


def test_numbered_figures_come_first_and_each_has_a_link(page):
    figures = re.findall(r'<figure id="([^"]+)"', page)
    assert figures[:2] == ["figure1", "figure2"]
    assert figures[2].startswith("similarity_") and figures[-1].startswith("curves_")
    contents = re.search(r"<nav.*?</nav>", page, re.S)[0]
    assert re.findall(r'href="#([^"]+)"', contents)[-len(figures) :] == figures


def test_what_drawing_a_figure_says_of_it(flow, tmp_path):
    figures = FigurePlan(flow)
    files = {**figure_files(figures, "curves_table4"), "about": tmp_path / "about.json"}
    draw.draw(figures, "curves_table4", files)
    about = json.loads(files["about"].read_text())
    parts = ("", "_losses")
    assert [Path(picture["png"]).name for picture in about["pictures"]] == [
        f"curves_table4{p}.png" for p in parts
    ]
    links = [picture["files"] for picture in about["pictures"]]
    assert links == [[[f"curves_table4{p}.{end}", end.upper()] for end in ("pdf", "csv")] for p in parts]
    assert about["title"] == "Table 4: training curves"
    assert about["caption"] == figures.drawings["curves_table4"].caption


def test_links_of_figure_2_lead_to_maps_numbers_and_statements(flow):
    figures = FigurePlan(flow)
    files = figure_files(figures, "figure2")
    frame = pd.DataFrame({"a": [1]})
    pictures = [
        draw.Picture([], "maps"),
        draw.Picture([], "numbers", "numbers", "numbers", {"numbers_csv": frame, "claims_csv": frame}),
    ]
    first, second = draw.describe(figures.drawings["figure2"], pictures, files)["pictures"]
    assert first["files"] == [["figure2.pdf", "PDF"], ["figure2.npz", "NPZ"]]
    assert second["files"] == [
        ["figure2_numbers.pdf", "PDF"],
        ["figure2_numbers.csv", "CSV"],
        ["figure2_claims.csv", "CSV of the statements below"],
    ]


def test_the_page_links_what_the_figures_say(page):
    for name, ends in {"figure1": ["pdf", "csv"], "curves_table4": ["pdf", "csv"]}.items():
        figure = re.search(rf'<figure id="{name}".*?</figure>', page, re.S)[0]
        assert re.findall(r'href="figures/([^"]+)"', figure)[:2] == [f"{name}.{end}" for end in ends]


def test_how_a_run_is_trained_again(flow):
    again = content.train_again(flow)
    assert again["folder"] == f"{flow.runs}/RUN"
    assert again["command"] == f"snakemake --cores 2 {flow.runs}/RUN/metrics.json --config scale=smoke"
    paper = content.train_again(Flow({"scale": "paper", "recipes": "as_printed"}))
    assert paper["command"].startswith(
        "snakemake --profile slurm results/paper/runs/RUN/metrics.json --config "
    )
    assert set(paper["command"].split("--config ")[1].split()) == {"scale=paper", "recipes=as_printed"}


def test_snakemake_takes_that_command(flow, tmp_path):
    copy = WorkflowCopy.make(tmp_path / "copy")
    run = next(iter(flow.plan.tables["table2"].runs))
    command = content.train_again(Flow({}))["command"].replace("RUN", run)
    jobs = copy.planned(*shlex.split(command)[1:])
    assert jobs == {"train": len(flow.plan.needed([run]))}


def test_pictures_are_described_in_words(tmp_path):
    flow = write_results(tmp_path)
    figures = FigurePlan(flow)
    words = {}
    for name in ("curves_table4", "figure1"):
        files = figure_files(figures, name)
        draw.draw(figures, name, files)
        words[name] = [picture["words"] for picture in json.loads(files["about"].read_text())["pictures"]]
    accuracy, losses = words["curves_table4"]
    assert re.search(r"6 curves; after the last epoch from [\d.]+ % \(.+, .+\) to", accuracy)
    assert "Terms: cross entropy; logits. Total loss after the last epoch:" in losses
    assert "mathcal" not in accuracy + losses
    assert "FBT" in words["figure1"][0]


def test_copies_are_what_the_tables_files_hold(flow, data):
    assert data["copies"]["table5"]["csv"].startswith("scale,row,column")
    assert r"\toprule" in data["copies"]["table5"]["latex"]
    assert r"\toprule" in data["copies"]["table6"]["latex"]


def test_every_picture_is_inside_and_named(flow, page):
    pictures = re.findall(r'<img src="(data:image/png;base64,[^"]+)" alt="([^"]+)"', page)
    assert len(pictures) == len(re.findall("<img", page)) == 5
    assert len({alt for _, alt in pictures}) == len(pictures)


def test_headers_and_captions_for_screen_readers(page):
    tables = re.findall(r"<table>.*?</table>", page, re.S)
    assert tables and all("<caption" in table and 'scope="col"' in table for table in tables)
    assert '<html lang="en">' in page and page.count("<h1>") == 1
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'aria-labelledby="([^"]+)"', page)) <= set(ids)


def test_claims_are_stated_with_their_numbers():
    local = features.Claim("CNNs are local", "locality", "CNN", 0.353, "MSA", 0.2349)
    groups = features.Claim("Groups differ", "group_similarity", "CNN", 0.1, "MSA", 0.2, "2 x 2")
    assert features.describe_claim(local) == "CNNs are local: as stated (locality: CNN 0.35, MSA 0.23)."
    assert features.describe_claim(groups) == (
        "Groups differ: not as stated (group similarity: CNN 0.10, MSA 0.20; on 2 x 2 positions)."
    )


def test_no_text_of_the_configuration_or_of_a_run_is_markup(tmp_path):
    """Titles, captions, labels, remarks, warnings, a figure's words and a log: all that is not ours."""
    evil = '<img src=x onerror=alert(1)> & "quoted"'
    copy = ConfigCopy(tmp_path)
    for old in ("title: Table 2", "corner: Method", "label: Our FBT", "label: ViT-S -> ResNet18"):
        copy.replace("tables/table2.yaml", old, f"{old.partition(':')[0]}: '{evil}'")
    copy.replace("tables/table2.yaml", "caption: ", f"caption: '{evil}' # ")
    copy.replace("tables/table2.reference.csv", "primary,\n", 'primary,"' + evil.replace('"', '""') + '"\n')
    flow = Flow({}, copy.folder)
    flow.results, flow.runs = str(tmp_path / "results"), str(tmp_path / "results/runs")
    write_scale(flow)
    run = flow.plan.tables["table2"].runs[0]
    Path(flow.runs, run, "log.txt").write_text(evil)
    metrics = json.loads(Path(flow.runs, run, "metrics.json").read_text())
    metrics["provenance"]["versions"]["torch"] = metrics["provenance"]["git_sha"] = evil
    Path(flow.runs, run, "metrics.json").write_text(json.dumps(metrics))
    about = {
        "key": "figure1",
        "kind": "taxonomy",
        "table": "",
        "title": evil,
        "caption": evil,
        "notes": [evil],
    }
    picture = {"png": str(tmp_path / "a.png"), "title": evil, "words": evil, "files": [[evil, evil]]}
    Path(picture["png"]).write_bytes(PIXEL)
    (tmp_path / "about.json").write_text(json.dumps({**about, "pictures": [picture]}))
    page = write_page(flow, "index", [tmp_path / "about.json"]).read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x") > 12


def test_labels_become_symbols():
    assert (
        content.pretty("L_MSE in <b> -> K_t") == "<i>L</i><sub>MSE</sub> in &lt;b&gt; → <i>K</i><sub>t</sub>"
    )


def test_data_cannot_end_the_script_element():
    text = str(embed({"log": "</script><!-- \u2028 &"}))
    assert "<" not in text and "&" not in text and "\u2028" not in text
    assert json.loads(text) == {"log": "</script><!-- \u2028 &"}


def test_long_histories_are_thinned_but_keep_their_last_epoch():
    thin = content.thin_history(make_history(300, terms=("labels",)))
    assert content.POINTS - 3 < len(thin["epoch"]) <= content.POINTS and thin["epoch"][-1] == 300
    assert len(thin["top1"]) == len(thin["terms"]["labels"]) == len(thin["epoch"])


def test_a_page_needs_its_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flow = Flow({})
    write_scale(flow)
    (Path(flow.runs) / flow.plan.tables["table5"].runs[0] / "metrics.json").unlink()
    with pytest.raises(Exception, match="the run is not finished"):
        write_page(flow, "index", [])
    assert not Path(flow.results, "index.html").exists()


def test_the_page_begins_with_the_verdicts_on_the_papers_claims(flow, tmp_path):
    claims = tmp_path / "claims.csv"
    claims.write_text(
        "key,where,claim,verdict,evidence,chance,note\n"
        'one,"appendix, Table 2",A <b> above B,holds,"difference +1.20 [0.31, 2.09]",images; one seed,\n'
        "two,main paper,C above D,undecided,difference +0.10 [-1.00; 1.20],seeds and images,a note\n"
    )
    (tmp_path / "claims_intervals.csv").write_text(
        "key,pair,verdict,difference,low,high,printed,unit\n"
        "two,Swin-T -> X,undecided,0.1,-1.0,1.2,0.7,points\n"
        "two,ViT-S -> X,undecided,0.3,-0.8,1.4,28.35,points\n"
    )
    page = write_page(flow, "index", write_pixels(FigurePlan(flow)), claims).read_text(encoding="utf-8")
    assert page.index('id="claims"') < page.index('<section id="table')
    for text in (
        "<b>1</b> holds",
        "<b>0</b> contradicted",
        "<b>1</b> undecided",
        "A &lt;b&gt; above B",
        "a note",
    ):
        assert text in page, text
    # A claim whose intervals are known is drawn: the second pair's printed number is off the common axis.
    assert "difference +0.10" not in page and "<b>+0.10</b> [-1.00, +1.20]" in page
    assert page.count('class="zero"') == 2 and page.count('class="printed"') == 1
    assert 'x1="4.0" x2="88.33"' in page  # [-1, 1.2] on an axis from -1 to 1.4
    assert "Swin-T → X" in page
    assert "difference +1.20 [0.31, 2.09]" in page and "chance of images; one seed" in page
    without = write_page(flow, "index", write_pixels(FigurePlan(flow))).read_text(encoding="utf-8")
    assert 'id="claims"' not in without


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("open: mean of both ways", "ours"),
        ("appendix A: L_OFA and L_InfoNCE weigh the same; 1 is open", "ours"),
        ("whole batch; neither the paper nor OFA says", "ours"),
        ("ours, for tiny networks", "ours"),
        ("paper's Table 1 (9/0.5), as timm writes it", "paper"),
        ("appendix: Swin block; ViT in Table 5", "paper"),
        ("OFA code, no decay on 1-D tensors", "code"),
        ("released: 1", "code"),
    ],
)
def test_whose_a_setting_is(source, kind):
    assert evidence.kind_of(source) == kind


def test_the_assumptions_of_fbt_are_counted():
    """The appendix leaves twelve of FBT's twenty-six values open."""
    config = Flow({}).config
    kinds = [kind for _, kind in evidence.describe_sources(config, ["fbt"])["fbt"].values()]
    assert len(kinds) == 26 and kinds.count("ours") == 12


def test_a_cell_brings_its_evidence(data):
    cell = data["cells"]["table4/mse_final/top1"]
    assert (
        cell["latex"].count(r"\pm") == 1 and cell["scratch"] is not None and cell["printed_gain"] is not None
    )
    assert cell["gain"] == pytest.approx(cell["ours"] - cell["scratch"], abs=0.01)
    assert data["titles"]["swin_p"] == "Swin-P" and set(data["kinds"]) == {"paper", "code", "ours"}
