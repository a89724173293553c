"""Which runs the tables need: sharing, chains, teachers, and what an addition adds."""

import hashlib
import json
import re
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
import torch

from fbt_core.spec import parse_spec
from fbt_paper.config.load import load
from fbt_paper.config.problems import ConfigError
from fbt_paper.config.records import AccuracyTable
from fbt_paper.plan.frozen import timm_tags
from fbt_paper.plan.runs import Plan, plan, table_label
from fbt_paper.plan.show import render_recipe
from fbt_paper.plan.targets import Flow
from tests.test_paper.config_copy import ConfigCopy

ROOT = Path(__file__).parents[2]
METHODS = {"scratch", "fitnet", "cc", "rkd", "crd", "reviewkd", "simkd", "fcfd", "lowpass", "kd", "dkd"}
METHODS |= {"dist", "ofa", "fbt"}
PAIRS = {"cifar100": 12, "imagenet": 15, "homogeneous": 2}


@pytest.fixture(scope="module", params=["smoke", "paper"])
def planned(request) -> Plan:
    return plan(load(overrides={"scale": request.param}))


@pytest.fixture(scope="module")
def paper() -> Plan:
    return plan(load(overrides={"scale": "paper"}))


@pytest.fixture
def copy(tmp_path):
    return ConfigCopy(tmp_path)


def only_run(plan: Plan, table: str, row: str, column: str):
    (run,) = plan.tables[table].cells[row, column].runs
    return plan.runs[run]


# ---------------------------------------------------------------- the whole paper


def test_both_scales_are_planned_within_five_seconds_and_without_torch():
    program = """
import sys, time
begin = time.perf_counter()
from fbt_paper.plan.targets import Flow
import fbt_paper.cli, fbt_paper.plan.figures
for scale in ("smoke", "paper"):
    fbt_paper.plan.figures.FigurePlan(Flow({"scale": scale}))
loaded = {"torch", "timm", "torchvision", "pandas", "matplotlib"} & set(sys.modules)
seconds = time.process_time()
import fbt_paper.tables.compare, fbt_paper.tables.results, fbt_paper.figures.draw, fbt_paper.page.build
loaded |= {"torch", "timm", "torchvision"} & set(sys.modules)
print(seconds, sorted(loaded))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, loaded = done.stdout.split(maxsplit=1)
    assert float(seconds) < 5
    assert loaded.strip() == "[]"


def test_a_run_comes_after_the_runs_it_needs(planned):
    order = {run: index for index, run in enumerate(planned.runs)}
    for run, spec in planned.runs.items():
        assert run == spec.id
        assert all(order[needed] < order[run] for needed in spec.needed_runs())


def test_every_run_is_needed_by_a_table(planned):
    needed = planned.needed(run for table in planned.tables.values() for run in table.runs)
    assert sorted(needed) == sorted(planned.runs)


def test_specs_survive_the_way_to_the_engine():
    for scale in ("smoke", "paper"):
        flow = Flow({"scale": scale})
        assert all(parse_spec(flow.spec_json(run)) == spec for run, spec in flow.plan.runs.items())


@pytest.mark.parametrize("table", PAIRS)
def test_the_grids_hold_every_pair_and_every_method(planned, table):
    config = load()
    rows, columns = config.tables[table].rows, config.tables[table].columns
    assert len(rows) >= PAIRS[table]
    assert {column.method for column in columns if column.measure is None} >= METHODS
    assert [column.key for column in columns if column.measure] == ["teacher"]
    assert len(planned.tables[table].cells) == len(rows) * len(columns)


def test_the_tables_of_the_appendix_have_all_their_cells(planned):
    sizes = {
        key: len(planned.tables[key].cells) for key in ("table2", "table3", "table4", "table5", "table6")
    }
    paper = {"table2": 6, "table3": 5, "table4": 6, "table5": 6, "table6": 0}
    assert all(sizes[key] >= size for key, size in paper.items())  # a row may be added


def test_every_cell_has_a_run_but_pretrained_teachers(planned):
    for table in planned.tables.values():
        for (_, column), cell in table.cells.items():
            if not cell.runs:
                assert planned.scale == "paper" and column == "teacher" and "not measured here" in cell.note


def test_grids_belong_to_all_only_at_paper_scale(planned):
    grids = {"ablation", "cifar100", "homogeneous", "imagenet", "modern", "sensitivity"}
    assert set(planned.target("grid")) == grids
    assert (grids <= set(planned.all_tables)) == (planned.scale == "paper")


# ---------------------------------------------------------------- sharing, seeds, teachers


def test_a_cell_that_several_tables_print_is_one_run(planned):
    run = only_run(planned, "table5", "swin_block", "swin_t__resnet18").id
    assert run == only_run(planned, "table2", "fbt", "swin_t__resnet18").id
    assert run == only_run(planned, "cifar100", "swin_t__resnet18", "fbt").id
    assert run == only_run(planned, "ablation", "full", "cifar100_swin_t__resnet18").id
    tables = {"table2", "table5", "cifar100", "ablation", "modern"}
    if planned.scale == "smoke":  # where one dataset stands in for both
        tables.add("imagenet")
    assert set(planned.tables_of(run)) == tables


def test_at_smoke_both_datasets_are_the_embedded_one():
    smoke = plan(load())
    assert {run.dataset.name for run in smoke.runs.values()} == {"fashion_mnist"}
    assert {run.dataset.train_images for run in smoke.runs.values()} == {1000, 10000}
    assert min(run.recipe.epochs for run in smoke.runs.values()) >= 3


def test_table_4_has_three_seeds_at_smoke_and_one_teacher():
    table = plan(load()).tables["table4"]
    seeds = {row: len(cell.runs) for (row, _), cell in table.cells.items()}
    paper = {
        "student_from_scratch",
        "mse_all_stages",
        "mse_final",
        "mse_final_pooled",
        "infonce_final_pooled",
    }
    assert seeds.pop("teacher") == 1
    assert set(seeds) >= paper and set(seeds.values()) == {3}


def test_students_of_all_seeds_share_the_first_seeds_teacher():
    several = plan(load(overrides={"seeds": [7, 8, 9]}))
    students = [several.runs[run] for run in several.tables["table5"].runs]
    assert {student.seed for student in students} == {7, 8, 9}
    for student in students:
        teacher = several.runs[student.teacher.weights.removeprefix("run:")]
        assert teacher.seed == 7


def test_a_teacher_that_is_taught_itself_has_its_students_seed():
    """The middle of a chain is trained anew for each seed; the network that teaches it is not."""
    several = plan(load(overrides={"seeds": [7, 8, 9]}))
    students = [run for run in several.runs.values() if run.teacher and has_taught_teacher(several, run)]
    assert {student.seed for student in students} == {7, 8, 9}
    for student in students:
        assistant = several.runs[student.teacher.weights.removeprefix("run:")]
        assert assistant.seed == student.seed
        assert several.runs[assistant.teacher.weights.removeprefix("run:")].seed == 7


def has_taught_teacher(several: Plan, run) -> bool:
    return several.runs[run.teacher.weights.removeprefix("run:")].teacher is not None


def test_teachers_at_smoke_are_from_scratch_runs_of_the_twins():
    smoke = plan(load())
    for pair in smoke.tables["table5"].runs:
        run = smoke.runs[smoke.runs[pair].teacher.weights.removeprefix("run:")]
        assert (run.method.name, run.student.weights, run.teacher) == ("scratch", "none", None)


def test_teachers_of_cifar100_are_fine_tuned_and_those_of_imagenet_are_timms(paper):
    fine_tuned = only_run(paper, "cifar100", "swin_t__resnet18", "teacher")
    assert fine_tuned.student.weights == "timm:swin_tiny_patch4_window7_224.ms_in1k"
    assert (fine_tuned.method.name, fine_tuned.recipe.optimizer.learning_rate) == ("scratch", 5e-5)
    student = only_run(paper, "cifar100", "swin_t__resnet18", "fbt")
    assert student.teacher.weights == f"run:{fine_tuned.id}"
    assert student.teacher.mean == student.dataset.mean
    mixer = only_run(paper, "imagenet", "mixer_b16__resnet18", "fbt").teacher
    assert mixer.weights == "timm:mixer_b16_224.goog_in21k_ft_in1k"
    assert (mixer.mean, mixer.std) == ((0.5,) * 3, (0.5,) * 3)


def test_gamma_follows_the_dataset(paper):
    for table, gamma in (("cifar100", 1.0), ("imagenet", 1.5)):
        assert only_run(paper, table, "swin_t__resnet18", "fbt").method.parameters["gamma"] == gamma


def test_fusion_revision_is_set_only_for_methods_with_the_fused_model(planned):
    revised = {run.method.name for run in planned.runs.values() if run.method.fusion_revision is not None}
    assert revised == {"fbt"}


# ---------------------------------------------------------------- chains


def chain_of(plan: Plan, row: str) -> list[tuple[str, str, str]]:
    """(method, teacher, student) of the runs of a row of Table 3, in the order they are trained."""
    runs = [plan.runs[run] for run in plan.needed([only_run(plan, "table3", row, "top1").id])]
    return [(r.method.name, r.teacher.architecture, r.student.architecture) for r in runs if r.teacher]


def test_row_a_distils_the_assistant_first(planned):
    assert chain_of(planned, "a") == [("kd", "swin_t", "resnet34"), ("kd", "resnet34", "resnet18")]
    last = only_run(planned, "table3", "a", "top1")
    assistant = planned.runs[last.teacher.weights.removeprefix("run:")]
    assert (assistant.student.architecture, assistant.teacher.architecture) == ("resnet34", "swin_t")
    assert last.student.weights == "none"


@pytest.mark.parametrize(("row", "method"), [("d", "kd"), ("e", "fbt")])
def test_rows_d_and_e_go_on_with_one_student(planned, row, method):
    assert chain_of(planned, row) == [(method, "swin_t", "resnet18"), (method, "resnet34", "resnet18")]
    second = only_run(planned, "table3", row, "top1")
    first = planned.runs[second.student.weights.removeprefix("run:")]
    assert (first.student.weights, first.teacher.architecture) == ("none", "swin_t")
    teacher = planned.runs[second.teacher.weights.removeprefix("run:")]
    assert (teacher.method.name, teacher.teacher) == ("scratch", None)


def test_table_3_uses_the_logit_loss_only(planned):
    for row in "bce":
        parameters = only_run(planned, "table3", row, "top1").method.parameters
        assert (parameters["logit_loss"], parameters["feature_loss"]) == ("kl", "none")
    assert not only_run(planned, "table3", "b", "top1").method.parameters["teacher_to_student"]
    assert only_run(planned, "table3", "c", "top1").method.parameters["teacher_to_student"]


# ---------------------------------------------------------------- adding things, as CONTRIBUTING.md says


def new_runs(before: Plan, after: Plan) -> Counter:
    """How many runs of which (method, student) came; none may go."""
    assert set(before.runs) <= set(after.runs)
    added = set(after.runs) - set(before.runs)
    return Counter((after.runs[run].method.name, after.runs[run].student.architecture) for run in added)


def test_an_ablation_row_is_one_list_item_and_adds_its_runs_only(copy):
    before = copy.plan("paper")
    copy.replace(
        "tables/ablation.yaml",
        "  - {key: full,",
        "  - {key: one_way, label: One way, method: fbt, parameters: {direction: one_way}}\n  - {key: full,",
    )
    after = copy.plan("paper")
    assert new_runs(before, after) == {("fbt", "resnet18"): 2, ("fbt", "swin_p"): 1}


def test_a_row_that_repeats_a_known_run_adds_none(copy):
    before = copy.plan("paper")
    copy.replace(
        "tables/ablation.yaml",
        "  - {key: full,",
        "  - {key: same, label: again, method: fbt, parameters: {direction: symmetric}}\n  - {key: full,",
    )
    assert not new_runs(before, copy.plan("paper"))


def test_an_architecture_is_one_entry(copy):
    before = copy.plan()
    copy.append(
        "architectures.yaml",
        "\nregnet:\n  title: RegNet\n  family: cnn\n  create: regnetx_002\n  options: {}\n",
    )
    assert not new_runs(before, copy.plan())
    copy.replace(
        "tables/table5.yaml",
        "columns:\n",
        "columns:\n  - {key: swin_t__new, label: Swin-T -> RegNet, teacher: swin_t, student: regnet}\n",
    )
    assert new_runs(before, copy.plan()) == {("fbt", "regnet"): 2}
    assert new_runs(copy_without_regnet(copy), copy.plan("paper")) == {("fbt", "regnet"): 2}


def copy_without_regnet(copy: ConfigCopy) -> Plan:
    return plan(load(overrides={"scale": "paper"}))


def test_a_new_architecture_teaches_where_it_has_pretrained_weights(copy):
    copy.append(
        "architectures.yaml",
        "\nregnet:\n  title: RegNet\n  family: cnn\n  create: regnetx_002\n  options: {}\n",
    )
    copy.replace(
        "tables/table5.yaml", "teacher: swin_t, student: resnet18", "teacher: regnet, student: resnet18"
    )
    assert not copy.problems()  # at smoke teachers are trained from scratch
    copy.replace("config.yaml", "scale: smoke", "scale: paper")
    expected = ".teacher: 'regnet' cannot teach on cifar100: architectures.yaml has no `pretrained` for it"
    assert any(expected in problem for problem in copy.problems())


def test_a_method_is_one_file_and_its_numbers(copy, monkeypatch, tmp_path):
    from fbt_core.methods import registry
    from fbt_paper.config import parameters

    folder = tmp_path / "methods"
    folder.mkdir()
    for path in registry.FOLDER.glob("*.py"):
        (folder / path.name).write_text(path.read_text())
    (folder / "kd2.py").write_text("METHOD = None\n")
    monkeypatch.setattr(registry, "FOLDER", folder)
    monkeypatch.setattr(parameters, "FILE", copy.path("methods.yaml"))
    copy.append(
        "methods.yaml",
        "\nkd2:\n  title: KD2\n  citation: none\n  source: a test\n  transfers: logits\n  levels: 2\n"
        "  losses: [KL]\n  formula: KL\n  generic: true\n  extra_parameters: false\n  revision: 1\n"
        "  parameters:\n    temperature: {value: 4.0, minimum: 0.05, source: a test}\n",
    )
    before = copy.plan()
    copy.replace(
        "tables/homogeneous.yaml", "columns:\n", "columns:\n  - {key: kd2, label: KD2, method: kd2}\n"
    )
    after = copy.plan()
    assert new_runs(before, after) == {("kd2", "resnet18"): 1, ("kd2", "mobilenetv1"): 1}


def test_a_dataset_is_one_entry(copy):
    copy.append(
        "datasets.yaml",
        "\npets:\n  title: Pets\n  loader: image_folder\n  variant: full\n  needs_root: true\n  classes: 37\n"
        "  train_images: 3680\n  test_images: 3669\n  image_size: 224\n  mean: [0.5, 0.5, 0.5]\n"
        "  std: [0.5, 0.5, 0.5]\n  teachers: fine_tuned\n  recipes: cifar100\n",
    )
    copy.replace("tables/table5.yaml", "dataset: cifar100", "dataset: pets")
    runs = [run for run in copy.plan("paper").runs.values() if run.dataset.name == "pets"]
    assert Counter(run.method.name for run in runs) >= Counter({"fbt": 6, "scratch": 3})
    assert {run.dataset.classes for run in runs} == {37}


def test_weights_of_your_own_take_the_place_of_the_fine_tune_run(copy):
    sha = "ab" * 32
    copy.replace(
        "config.yaml",
        "teacher_files: {}",
        f"teacher_files: {{cifar100: {{swin_t: {{path: /data/swin_t.pt, sha256: {sha}}}}}}}",
    )
    teacher = only_run(copy.plan("paper"), "table2", "fbt", "swin_t__resnet18").teacher
    assert teacher.weights == f"file:{sha}"
    assert teacher.mean == load().datasets["cifar100"].mean
    assert copy.plan().runs.keys() == plan(load()).runs.keys()


def save_teacher(path: Path, content: object) -> str:
    """A file of tensors, or of anything; its sha256."""
    torch.save(content, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_teachers_file_that_no_run_could_read_is_refused_before_the_first_job(copy, tmp_path):
    """Missing, changed since its sha256 was noted, a training script's pickle: a line each, in one call."""
    pickled = save_teacher(tmp_path / "pickled.pth.tar", {"args": Namespace(lr=1)})
    sha256 = save_teacher(tmp_path / "good.pt", {"weight": torch.zeros(1)})
    entries = {"swin_t": ("missing.pt", "ab" * 32), "mixer_b16": ("good.pt", "cd" * 32)}
    entries["convnext_t"] = ("pickled.pth.tar", pickled)
    with pytest.raises(ConfigError) as error:
        check_teachers(copy, tmp_path, entries)
    said = [str(problem) for problem in error.value.problems]
    assert len(said) == 3 and all(line.startswith("config/config.yaml: teacher_files: ") for line in said)
    for words in (
        ("missing.pt: weights file is missing",),
        ("good.pt: sha256 is", f"expected {'cd' * 32}"),
        ("pickled.pth.tar: refused", "fbt_core.weights convert"),
    ):
        assert any(all(word in line for word in words) for line in said), said
    check_teachers(copy, tmp_path, {"swin_t": ("good.pt", sha256)})


@pytest.mark.parametrize("rule", ["train", "publish"])
def test_no_job_starts_and_no_spec_is_frozen_before_the_teachers_files_are_checked(
    rule, copy, tmp_path, monkeypatch
):
    """A run that reads no such file goes ahead."""
    flow = flow_with_teachers(copy, tmp_path, {"swin_t": ("missing.pt", "ab" * 32)})
    monkeypatch.chdir(tmp_path)
    (student,) = flow.plan.tables["table2"].cells["fbt", "swin_t__resnet18"].runs
    assert flow.plan.runs[student].teacher.weights == f"file:{'ab' * 32}"
    with pytest.raises(ConfigError, match=r"teacher_files: .*missing\.pt: weights file is missing"):
        flow.prepare([planned_job(rule, student)])
    assert not Path("results").exists()

    other = next(spec for spec in flow.plan.runs.values() if spec.teacher is None)
    flow.prepare([planned_job(rule, other.id)])
    assert Path(flow.specs, f"{other.id}.json").exists()


def planned_job(rule: str, run: str) -> Namespace:
    """A job as Snakemake gives it to the `onstart` of the rules."""
    return Namespace(rule=Namespace(name=rule), wildcards=Namespace(run=run))


def flow_with_teachers(copy: ConfigCopy, folder: Path, files: dict[str, tuple[str, str]]) -> Flow:
    """Scale paper with files of `folder` and their sha256 as teachers on CIFAR-100."""
    entries = {key: {"path": str(folder / name), "sha256": sha256} for key, (name, sha256) in files.items()}
    (folder / "train").mkdir(exist_ok=True)
    roots = {"cifar100": str(folder)}
    settings = {"scale": "paper", "teacher_files": {"cifar100": entries}, "data_roots": roots}
    return Flow(settings, copy.folder)


def check_teachers(copy: ConfigCopy, folder: Path, files: dict[str, tuple[str, str]]) -> None:
    """What `snakemake` asks of these teachers before its first job."""
    flow = flow_with_teachers(copy, folder, files)
    flow.check_weights_files(flow.plan.runs)


def test_weights_that_timm_does_not_have_are_refused(copy):
    copy.replace("architectures.yaml", "tag: resnet50.a1_in1k", "tag: resnet50.a9_in1k")
    (problem,) = copy.problems()
    where = "config/architectures.yaml: resnet50.pretrained.tag"
    assert problem.startswith(f"{where}: timm has no 'resnet50.a9_in1k'")
    assert "valid: " in problem and "resnet50.a1_in1k" in problem


def test_weights_of_your_own_may_expect_their_own_normalisation(copy):
    stated = "mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]"
    entry = f"{{cifar100: {{swin_t: {{path: /data/swin_t.pt, sha256: {'ab' * 32}, {stated}}}}}}}"
    copy.replace("config.yaml", "teacher_files: {}", f"teacher_files: {entry}")
    teacher = only_run(copy.plan("paper"), "table2", "fbt", "swin_t__resnet18").teacher
    assert (teacher.mean, teacher.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_a_network_may_teach_another_of_its_architecture(copy, scale):
    copy.replace(
        "tables/homogeneous.yaml",
        "rows:\n",
        "rows:\n  - {key: same, label: same, teacher: resnet50, student: resnet50}\n",
    )
    run = only_run(copy.plan(scale), "homogeneous", "same", "kd")
    assert run.teacher.architecture == run.student.architecture == "resnet50"
    assert run.student.weights == "none" != run.teacher.weights


def test_the_full_fashion_mnist_is_a_stand_in_and_a_folder(copy):
    copy.replace("scales/smoke.yaml", "cifar100: fashion_mnist\n", "cifar100: fashion_mnist_full\n")
    copy.replace("config.yaml", "fashion_mnist_full: null", "fashion_mnist_full: /data")
    data = only_run(copy.plan(), "table2", "fbt", "swin_t__resnet18").dataset
    assert (data.train_images, data.test_images, data.variant) == (60000, 10000, "full")


@pytest.mark.parametrize(
    ("table", "row", "share", "interpolation"),
    [
        ("cifar100", "swin_t__resnet18", 0.875, "bilinear"),
        ("cifar100", "swin_t__mobilenetv2", 0.875, "bicubic"),
        ("cifar100", "convnext_t__resmlp_s12", 0.875, "bicubic"),
        ("cifar100", "convnext_t__deit_t", 0.9, "bicubic"),
        ("cifar100", "convnext_t__swin_p", 0.9, "bicubic"),
        ("imagenet", "convnext_t__swin_n", 0.9, "bicubic"),
        ("imagenet", "swin_t__resnet18", 0.875, "bilinear"),
    ],
)
def test_a_student_is_tested_with_its_own_crop_as_in_ofas_code(paper, table, row, share, interpolation):
    crop = only_run(paper, table, row, "kd").test_crop
    assert (crop.share, crop.interpolation) == (share, interpolation)


def test_whole_test_images_stay_an_option(copy, paper):
    assert all(run.test_crop is None for run in copy.plan("smoke").runs.values())
    copy.replace("datasets.yaml", "  recipes: cifar100\n  test_crop: network\n", "  recipes: cifar100\n")
    run = only_run(copy.plan("paper"), "cifar100", "swin_t__resnet18", "kd")
    assert run.test_crop is None
    assert run.model_copy(update={"test_crop": None, "teacher": None}) == only_run(
        paper, "cifar100", "swin_t__resnet18", "kd"
    ).model_copy(update={"test_crop": None, "teacher": None})


def test_swins_drop_path_is_ofas(copy, paper):
    """timm's 0.1 for teachers and students on CIFAR-100, 0 on ImageNet and in the other recipe set."""

    def rates(plan: Plan) -> set[tuple[str, str, float]]:
        networks = [
            (run.dataset.name, network)
            for run in plan.runs.values()
            for network in (run.student, run.teacher)
        ]
        return {
            (dataset, network.architecture, network.options["drop_path_rate"])
            for dataset, network in networks
            if network and "drop_path_rate" in network.options
        }

    expected = {("cifar100", "swin_t", 0.1), ("cifar100", "swin_p", 0.1)}
    expected |= {("imagenet", "swin_t", 0), ("imagenet", "swin_n", 0)}
    assert rates(paper) == expected
    copy.replace("config.yaml", "recipes: ofa", "recipes: as_printed")
    assert {rate for _, _, rate in rates(copy.plan("paper"))} == {0}


def test_precision_is_that_of_the_ofa_authors_own_runs(paper):
    precisions = {
        (run.dataset.name, run.student.family, run.recipe.precision)
        for run in paper.runs.values()
        if run.student.weights == "none"
    }
    assert precisions == {
        ("cifar100", "cnn", "float32"),
        ("cifar100", "msa", "float16"),
        ("cifar100", "mlp", "float16"),
        ("imagenet", "cnn", "float16"),
        ("imagenet", "msa", "float32"),
        ("imagenet", "mlp", "float32"),
    }


def test_a_dataset_that_options_name_must_exist(copy):
    copy.replace("architectures.yaml", "{ofa: {cifar100: {drop", "{ofa: {cifar10: {drop")
    with pytest.raises(ConfigError, match=r"options_by_recipes.ofa.cifar10.*did you mean 'cifar100'"):
        copy.plan("paper")


def test_whole_numbers_of_a_networks_options_are_written_one_way(copy):
    before = copy.plan("paper")
    copy.replace("architectures.yaml", "options: {drop_path_rate: 0.0}", "options: {drop_path_rate: 0}")
    assert before.runs.keys() == copy.plan("paper").runs.keys()


def test_what_a_recipe_is_called_changes_no_run(copy):
    """CIFAR-100's recipe for MLPs is that of MSA networks: another name, the same numbers."""
    before = copy.plan("paper")
    recipes = {run.recipe for run in before.runs.values() if run.student.family in ("msa", "mlp")}
    assert len(recipes) == 3  # CIFAR-100's, ImageNet's, the fine-tuning of teachers
    assert "name" not in type(next(iter(recipes))).model_fields


def test_a_row_may_change_the_recipe(copy):
    copy.replace(
        "tables/table5.yaml", "parameters: {block: vit}", "recipe: {epochs: 7, optimizer: {momentum: 0.8}}"
    )
    run = only_run(copy.plan(), "table5", "vit_block", "swin_t__resnet18")
    assert (run.recipe.epochs, run.recipe.optimizer.momentum) == (7, 0.8)
    assert run.recipe.optimizer.learning_rate == load().scale.recipes["cnn"].optimizer.learning_rate


def test_one_and_one_point_zero_are_one_run(copy):
    before = copy.plan()
    copy.replace(
        "tables/table2.yaml",
        "label: Our FBT, method: fbt",
        "label: Our FBT, method: fbt, parameters: {gamma: 1}",
    )
    assert before.runs.keys() == copy.plan().runs.keys()


def test_a_cell_can_be_left_out(copy):
    copy.append("tables/table5.yaml", "skip: [[vit_block, swin_t__resnet18]]\n")
    assert ("vit_block", "swin_t__resnet18") not in copy.plan().tables["table5"].cells
    copy.replace("tables/table5.yaml", "[[vit_block,", "[[vit_blockx,")
    assert any("skip[0][0]: unknown row 'vit_blockx'" in problem for problem in copy.problems())


def test_scale_comes_before_dataset_in_a_parameter():
    entry = load().methods["crd"].parameters["negatives"]
    assert entry.value_for("cifar100", ("smoke",)) == 256
    assert entry.value_for("cifar100", ("paper",)) == 16384


def test_printed_numbers_are_where_the_tables_have_cells():
    config = load()
    counted = {name: len(rows) for name, rows in config.references.items()}
    assert counted["table4"] == 6 and counted["table6"] == 18
    for name, table in config.tables.items():
        if isinstance(table, AccuracyTable):
            assert all(0 <= abs(line.value) <= 100 for line in config.references.get(name, ()))


def test_run_ids_of_the_json_are_stable_under_key_order():
    flow = Flow({})
    run = next(iter(flow.plan.runs))
    shuffled = json.dumps(dict(reversed(list(json.loads(flow.spec_json(run)).items()))))
    assert parse_spec(shuffled).id == run


# ---------------------------------------------------------------- refused before anything is queued


def test_all_problems_of_a_cell_and_of_all_tables_are_reported_together(copy):
    copy.replace("tables/table5.yaml", "parameters: {block: vit}", "parameters: {block: vit}, method: kd")
    copy.replace("tables/table2.yaml", "base: {dataset: cifar100}", "base: {}")
    copy.replace("tables/table4.yaml", "teacher: convnext_t, ", "recipe: {epoch: 3}, ")
    problems = copy.problems()
    for expected in (
        "table5.yaml: rows[0].method: sets method a second time",
        "table2.yaml: cell fbt, swin_t__resnet18: no `dataset` is set",
        "table4.yaml: cell mse_final, top1: no `teacher` is set",
        "table4.yaml: base.recipe.epoch: unknown key of a recipe",
    ):
        assert any(expected in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "{batch_size: 6000}",
            "batch_size: 6000 is larger than the training set of fashion_mnist (1000 images); use 1000",
        ),
        (
            "{batch_size: 63, augmentation: {mixup: 0.2}}",
            "batch_size: mixup and cutmix mix pairs of images, so 63",
        ),
        ("{epochs: 2.5}", "rows[0].recipe.epochs: "),
    ],
)
def test_a_recipe_that_no_training_could_use_is_refused_with_its_line(copy, change, message):
    copy.replace("tables/table5.yaml", "parameters: {block: vit}", f"recipe: {change}")
    (problem,) = copy.problems()
    assert problem.startswith("config/tables/table5.yaml: rows[0].recipe.")
    assert message in problem


def test_a_data_set_changes_the_recipes_of_all_its_runs_teachers_too(copy):
    copy.replace(
        "datasets.yaml",
        "  train_images: 10000\n",
        "  recipe: {batch_size: 8, epochs: 3}\n  train_images: 40\n",
    )
    copy.replace("scales/smoke.yaml", "student_images: {fashion_mnist: 1000}\n", "")
    planned = copy.plan()
    recipes = {(run.recipe.batch_size, run.recipe.epochs) for run in planned.runs.values()}
    assert recipes == {(8, 3)}, "those of teachers too, in place of the scale's own"  # words: allow
    # A table's own change wins: it is about fewer runs.
    copy.replace(
        "tables/table5.yaml", "parameters: {block: vit}", "parameters: {block: vit}, recipe: {epochs: 2}"
    )
    changed = copy.plan().tables["table5"].cells["vit_block", "swin_t__resnet18"].runs[0]
    recipe = copy.plan().runs[changed].recipe
    assert (recipe.batch_size, recipe.epochs) == (8, 2)
    shown = render_recipe(copy.load(), "fashion_mnist", "cnn")
    assert re.search(r"batch_size +8  config/datasets.yaml: fashion_mnist.recipe", shown)
    copy.replace("datasets.yaml", "batch_size: 8", "batch_size: 80")
    assert any(
        problem.startswith("config/datasets.yaml: fashion_mnist.recipe.batch_size: 80 is larger")
        for problem in copy.problems()
    )


def test_a_data_set_smaller_than_the_batch_of_its_recipe_is_refused_with_the_recipes_line(copy):
    copy.replace("config.yaml", "scale: smoke", "scale: paper")
    text = copy.path("datasets.yaml").read_text()
    copy.write("datasets.yaml", text.replace("train_images: 50000", "train_images: 100"))
    expected = (
        "config/recipes.yaml: ofa.cifar100.cnn.batch_size: 1024 is larger than the training set of cifar100"
    )
    assert any(problem.startswith(expected) for problem in copy.problems())


# ---------------------------------------------------------------- students that start from published weights

PRETRAINED = "  - {key: pre, label: Pre-trained, method: kd, student_weights: timm:resnet18.a1_in1k}\n"


def with_pretrained(copy, line=PRETRAINED, scale="paper"):
    copy.write(
        "tables/started.yaml",
        "kind: accuracy\ntitle: Started\ncaption: Started.\ntarget: tables\ncorner: Method\n"
        "base: {dataset: cifar100, teacher: swin_t, student: resnet18}\n"
        "rows:\n  - {key: plain, label: Plain, method: kd}\n"
        f"{line}columns:\n  - {{key: one, label: One}}\n",
    )
    return copy.plan(scale)


def test_a_student_may_start_from_published_weights_which_are_part_of_its_id(copy):
    planned = with_pretrained(copy)
    plain, started = (only_run(planned, "started", row, "one") for row in ("plain", "pre"))
    assert (plain.student.weights, started.student.weights) == ("none", "timm:resnet18.a1_in1k")
    assert plain.id != started.id
    assert plain.model_copy(update={"student": started.student}) == started
    assert timm_tags([started]) == ["resnet18.a1_in1k"]


def test_a_tiny_student_starts_untrained_and_its_cell_says_so(copy):
    planned = with_pretrained(copy, scale="smoke")
    plain, started = (planned.tables["started"].cells[row, "one"] for row in ("plain", "pre"))
    assert plain.runs == started.runs
    assert (plain.note, started.note) == ("", "the tiny student starts untrained")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("timm:resnet34.a1_in1k", "these are weights of resnet34, but 'resnet18' is resnet18"),
        ("timm:resnet18", "names no weights; write timm:<tag>"),
        ("resnet18.a1_in1k", "names no weights; write timm:<tag>"),
        ("timm:resnet19.a1_in1k", "timm has no 'resnet19'"),
        ("timm:resnet18.a1_in1k, start: {method: kd}", "keep one of the two"),
    ],
)
def test_wrong_weights_of_a_student_are_refused(weights, message, copy):
    line = PRETRAINED.replace("timm:resnet18.a1_in1k", weights)
    with pytest.raises(ConfigError, match=re.escape(message)):
        with_pretrained(copy, line)


# ---------------------------------------------------------------- sweeps

SWEEP = "sweep: {parameters.gamma: [1.0, 1.25, 1.5, 2.0]}"


def test_a_sweep_makes_a_row_of_each_value_and_shares_runs_with_other_tables():
    config, planned = load(), plan(load())
    table = config.tables["sensitivity"]
    assert [row.key for row in table.rows] == ["ofa_1", "ofa_1_25", "ofa_1_5", "ofa_2"]
    assert table.rows[1].label == "OFA, gamma 1.25"
    runs = [planned.runs[cell.runs[0]] for cell in planned.tables["sensitivity"].cells.values()]
    assert [run.method.parameters["gamma"] for run in runs] == [1.0, 1.25, 1.5, 2.0]
    assert runs[0].id in planned.tables["cifar100"].runs
    alike = {run.model_copy(update={"method": runs[0].method}).id for run in runs}
    assert alike == {runs[0].id}


def test_rows_behind_a_sweep_are_found_in_the_file_and_may_have_printed_numbers(copy):
    odd = "  - {key: odd, label: Odd, parameters: {gamm: 1.0}}\n"
    copy.replace("tables/sensitivity.yaml", "columns:", f"{odd}columns:")
    printed = "row,column,value,source,status\nofa_2,swin_t__resnet18,80,A,other\n"
    copy.write("tables/sensitivity.reference.csv", printed)
    (problem,) = copy.problems()
    assert problem.startswith(
        "config/tables/sensitivity.yaml: rows[1].parameters.gamm: unknown parameter of ofa"
    )


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("sweep: {gamma: [1.0, 1.5]}", "sweep: a sweep changes one setting, {parameters.gamma: [1.0, 1.5]}"),
        ("sweep: {parameters.gamma: [1.0]}", "sweep: parameters.gamma: a sweep needs two values or more"),
        ("sweep: {parameters.gamma: [1, 1.0]}", "sweep: parameters.gamma: a sweep needs two values or more"),
        ("sweep: {parameters.gamma: [1.0, 0.5]}", "sweep.parameters.gamma[1]: 0.5 is below the minimum, 1"),
        ("sweep: {parameters.gama: [1.0, 1.5]}", "sweep.parameters.gama[0]: unknown parameter of ofa"),
        (
            "parameters: {gamma: 1.0}, " + SWEEP,
            "parameters.gamma is set in this row as well; keep one of the",
        ),
    ],
)
def test_a_wrong_sweep_is_refused(sweep, message, copy):
    copy.replace("tables/sensitivity.yaml", SWEEP, sweep)
    assert any(message in problem for problem in copy.problems()), copy.problems()


# ---------------------------------------------------------------- students on a part of the images


def test_students_see_a_part_of_the_images_and_teachers_all(copy):
    copy.write("scales/part.yaml", "extends: smoke\nstudent_images: {fashion_mnist: 1500}\n")
    whole, planned = copy.plan("smoke"), copy.plan("part")
    teacher, student = only_run(planned, "table4", "teacher", "top1"), only_run_of(planned, "fbt")
    assert (teacher.dataset.train_images, teacher.dataset.part_of) == (10000, None)
    assert teacher.id == only_run(whole, "table4", "teacher", "top1").id
    assert (student.dataset.train_images, student.dataset.part_of) == (1500, 10000)
    alone = planned.runs[planned.tables["table4"].cells["student_from_scratch", "top1"].runs[0]]
    assert alone.dataset == student.dataset
    # An assistant is taught itself: it sees what students see.
    assistant = planned.runs[only_run(planned, "table3", "a", "top1").needed_runs()[0]]
    assert assistant.teacher is not None and assistant.dataset == student.dataset


def only_run_of(plan: Plan, method: str):
    return next(run for run in plan.runs.values() if run.method.name == method)


def test_more_images_for_students_than_there_are_is_one_problem_of_the_scale(copy):
    copy.write("scales/part.yaml", "extends: smoke\nstudent_images: {fashion_mnist: 11000}\n")
    copy.replace("config.yaml", "scale: smoke", "scale: part")
    problems = copy.problems()
    expected = "config/scales/part.yaml: student_images.fashion_mnist: 11000 is more than the training set of"
    assert problems and all(problem.startswith(expected) for problem in problems)


def test_a_batch_may_not_be_larger_than_the_part_that_students_see(copy):
    copy.write("scales/part.yaml", "extends: smoke\nstudent_images: {fashion_mnist: 50}\n")
    copy.replace("config.yaml", "scale: smoke", "scale: part")
    problems = copy.problems()
    assert any("64 is larger than the training set of fashion_mnist (50 images)" in p for p in problems)


# ---------------------------------------------------------------- labels, mini and pilot


def test_a_tables_label_names_its_own_data_and_networks(copy):
    config = copy.load()
    planned = plan(config)
    label = table_label(config, planned, "table2")
    expected = "SMOKE: tiny networks on Fashion-MNIST (10,000 + 5,000 images), students see 1,000 images."
    assert label.startswith(expected)
    assert table_label(copy.load({"scale": "paper"}), copy.plan("paper"), "table2") == ""


def test_mini_has_five_seeds_everywhere_and_the_students_images_of_smoke(copy):
    mini = copy.plan("mini")
    for key in ("table2", "table3", "table4", "table5"):
        seeds = {len(cell.runs) for cell in mini.tables[key].cells.values() if cell.runs}
        assert seeds <= {1, 5} and 5 in seeds, key
    runs = mini.needed(run for key in mini.all_tables for run in mini.tables[key].runs)
    specs = [mini.runs[run] for run in runs]
    teachers = [spec for spec in specs if spec.dataset.part_of is None]
    assert {spec.dataset.train_images for spec in teachers} == {20000} and len(teachers) == 4
    assert {spec.dataset.train_images for spec in specs if spec not in teachers} == {1000}
    assert {spec.dataset.test_images for spec in specs} == {5000}


def test_each_seed_may_have_a_teacher_of_its_own(copy):
    shared = copy.plan("mini")
    each = plan(copy.load({"scale": "mini", "teacher_seeds": "each"}))
    cells = lambda planned: planned.tables["table2"].cells["fbt", "swin_t__resnet18"].runs  # noqa: E731
    teachers = [each.runs[run].needed_runs()[0] for run in cells(each)]
    assert [each.runs[teacher].seed for teacher in teachers] == [each.runs[run].seed for run in cells(each)]
    assert {shared.runs[run].needed_runs() for run in cells(shared)} == {(teachers[0],)}
    # The first seed's student is the same run either way, and a table's own row shows all teachers.
    assert [run in cells(shared) for run in cells(each)] == [True, False, False, False, False]
    rows = {key: len(cell.runs) for key, cell in each.tables["table4"].cells.items() if key[0] == "teacher"}
    assert set(rows.values()) == {5}


def test_pilot_is_the_papers_networks_at_112_pixels_where_they_allow_it(copy):
    pilot, paper = copy.plan("pilot"), copy.plan("paper")
    for key in ("table2", "table3", "table4", "table5"):
        for run in pilot.needed(pilot.tables[key].runs):
            spec = pilot.runs[run]
            assert spec.dataset.image_size == 112 and spec.recipe.epochs == 30
            assert spec.test_crop is not None
    at = lambda plan, row, column: plan.runs[plan.tables["cifar100"].cells[row, column].runs[0]]  # noqa: E731
    for row, size in (("swin_t__resmlp_s12", 224), ("mixer_b16__resnet18", 224), ("swin_t__resnet18", 112)):
        spec, published = at(pilot, row, "fbt"), at(paper, row, "fbt")
        assert spec.dataset.image_size == size
        teacher = pilot.runs[spec.teacher.weights.removeprefix("run:")]
        assert teacher.dataset.image_size == size and teacher.student.weights.startswith("timm:")
        changed = {"epochs": 30, "schedule": spec.recipe.schedule}
        assert spec.student == published.student
        assert spec.recipe == published.recipe.model_copy(update=changed)


def test_a_teacher_without_a_run_is_measured_by_a_run_of_its_table(paper):
    cells = paper.tables["imagenet"].cells
    known = [cell for cell in cells.values() if cell.teacher is not None]
    assert known and all("not measured here" in cell.note for cell in known)
    for cell in known:
        taught = paper.runs[cell.measured_by]
        assert taught.teacher == cell.teacher and cell.measured_by in paper.tables["imagenet"].runs
