"""The command `fbt`: what each subcommand prints, and how it fails."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fbt_core.errors import UserError
from fbt_paper import cli
from fbt_paper.cli import main
from fbt_paper.config.load import load
from fbt_paper.plan.bill import estimate, read_macs
from fbt_paper.plan.runs import plan
from fbt_paper.plan.show import leaves
from fbt_paper.plan.targets import Flow
from fbt_paper.status import bench, cluster, machine
from tests.test_paper.config_copy import ARCHITECTURES, ConfigCopy
from tests.test_paper.page_results import write_results

ROOT = Path(__file__).parents[2]
COMMANDS = ["plan", "spec", "recipe", "check-data", "check-cluster", "fetch-weights", "status", "show"]
COMMANDS += ["diff", "build-table", "compare", "check-machine", "bench"]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def lines_of(capsys, *arguments: str) -> list[str]:
    assert main(arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_fbt_alone_says_what_it_can_do(capsys):
    text = "\n".join(lines_of(capsys))
    assert all(command in text for command in COMMANDS)
    assert "snakemake --cores 2" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert re.search(r"example: fbt .*" + command, capsys.readouterr().out)


def example_of(command: str, capsys) -> list[str]:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    return re.search(r"example: fbt (.*)$", printed)[1].split()


@pytest.mark.parametrize("command", [*COMMANDS, "draw", "build-page", "collect-results"])
def test_every_example_runs(command, capsys, tmp_path, monkeypatch):
    """On made-up results of the whole smoke scale; only cluster and machine are not asked."""
    arguments = [text.replace("png=", f"png={tmp_path}/") for text in example_of(command, capsys)]
    flow = write_results(tmp_path)
    monkeypatch.setattr(cli, "Flow", lambda settings, folder: Flow(settings) if settings else flow)
    monkeypatch.setattr(cluster, "main", lambda options: 0)
    monkeypatch.setattr(bench, "bench", lambda flow, spec, options: ["measured"])
    monkeypatch.setattr(machine, "check_machine", lambda flow, speeds: [])
    assert main(arguments) == 0
    assert capsys.readouterr().out or command == "check-cluster"


def test_plan_counts_cells_runs_and_shared_runs(capsys):
    lines = lines_of(capsys, "--scale", "smoke", "plan", "table4", "table5")
    row = next(line.split() for line in lines if line.startswith("table4"))
    table = plan(load()).tables["table4"]
    assert row[1:3] == [str(len(table.cells)), str(len(plan(load()).needed(table.runs)))]
    assert "all different runs" in "\n".join(lines)


def test_plan_at_paper_scale_states_the_bill_and_what_it_assumes(capsys):
    def gpu_hours(tflops: str) -> int:
        lines = lines_of(capsys, "--scale", "paper", "plan", "imagenet", "--tflops", tflops)
        assert any(f"float32 {tflops}, tf32 {tflops}," in line for line in lines)
        row = next(line for line in lines if line.startswith("imagenet"))
        least, most = (int(number.replace(",", "")) for number in row.split()[-2:])
        assert least == most
        return least

    # Slower than what loads its images, so that only the arithmetic counts.
    assert gpu_hours("2") == pytest.approx(2 * gpu_hours("4"), rel=1e-3)


def test_the_bill_is_a_range_that_depends_on_the_gpu_and_ends_at_the_loaders(capsys):
    def hours(*options: str) -> tuple[list[int], list[str]]:
        lines = lines_of(capsys, "--scale", "paper", "plan", "imagenet", *options)
        row = next(line for line in lines if line.startswith("imagenet"))
        return [int(number.replace(",", "")) for number in row.split()[-2:]], lines

    (least, most), lines = hours()
    assert least < most
    text = "\n".join(lines)
    assert "a100, assumed shares of its peak" in text and "8 cores per GPU" in text
    assert hours("--gpu", "v100")[0][0] > least > hours("--gpu", "h100")[0][0]
    loading = int(re.search(r"Loading alone: ([\d,]+) hours", text)[1].replace(",", ""))
    assert hours("--tflops", "1e6")[0] == pytest.approx([loading, loading], abs=1)
    assert hours("--tflops", "1e6", "--cores-per-gpu", "16")[0][0] == pytest.approx(loading / 2, abs=1)
    stated = f"{round(least, -3):,} to {round(most, -3):,} for the ImageNet-1K grid, of which loading alone"
    assert f"{stated} takes {round(loading, -2):,} at 8 cores" in (ROOT / "docs/reproduced.md").read_text()


def test_an_unknown_gpu_is_refused_with_those_that_are_known(capsys):
    assert main(["plan", "--gpu", "a10"]) == 1
    assert "unknown GPU 'a10'" in capsys.readouterr().err


def test_the_bill_of_one_run_by_hand():
    run = next(r for r in plan(load(overrides={"scale": "paper"})).runs.values() if r.teacher)
    macs = {run.student.architecture: 10**9, run.teacher.architecture: 2 * 10**9}
    images, tests = run.dataset.train_images, run.dataset.test_images
    by_hand = run.recipe.epochs * (images * (3 * 2e9 + 4e9) + tests * 2e9) / 1e15
    assert estimate([run], macs).pflops == pytest.approx(by_hand)
    assert estimate([run], {}).uncounted == (run.student.architecture, run.teacher.architecture)


def test_every_architecture_is_counted():
    """Of the paper's thirteen; one that is added is named by `fbt plan` until it is counted."""
    counted = read_macs()
    assert set(load().architectures) >= set(counted) >= ARCHITECTURES
    assert all(macs > 10**8 for macs in counted.values())


def test_plan_lists_runs_in_an_order_they_can_be_run(capsys):
    lines = lines_of(capsys, "plan", "table3", "--runs")
    ids = [line.split()[0] for line in lines]
    whole = plan(load())
    assert all(ids.index(needed) < ids.index(run) for run in ids for needed in whole.runs[run].needed_runs())


def test_spec_finds_a_run_by_a_part_of_its_id(capsys):
    run = plan(load()).tables["table5"].runs[0]
    printed = json.loads("\n".join(lines_of(capsys, "spec", run[-10:])))
    assert printed["method"]["name"] == "fbt"
    assert printed["student"]["architecture"] == "resnet18"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spec", "no-such-run"], "no run is called 'no-such-run'"),
        (["plan", "tabel5"], "fbt: unknown table 'tabel5'; valid: ablation,"),
        (["recipe", "cifar10", "cnn"], "did you mean 'cifar100'?"),
        (["recipe", "cifar100", "cnm"], "did you mean 'cnn'?"),
        (
            ["--scale", "paper", "recipe", "imagenet", "teacher"],
            "ofa.imagenet: has no recipe for 'teacher'; ",
        ),
        (
            ["--scale", "paper", "build-table", "table6"],
            "is not counted yet; `python -m fbt_core.measure.cost table6",
        ),
        (["check-data", "cifar10"], "did you mean 'cifar100'?"),
        (["--set", "recipes", "plan"], "must be KEY=VALUE"),
        (["--set", "recipes=offa", "plan"], "did you mean 'ofa'?"),
        (["--config", "nowhere", "plan"], "config.yaml: the file is missing"),
        (["--scale", "paper", "build-table", "table5"], "the run is not finished"),
    ],
)
def test_a_mistake_gives_one_message_and_exit_code_1(arguments, message, capsys):
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err and output.err.startswith("fbt: ")


def test_recipe_shows_value_and_source(capsys):
    lines = lines_of(capsys, "--scale", "paper", "recipe", "imagenet", "msa")
    row = next(line for line in lines if line.startswith("ema_decay"))
    assert row.split(maxsplit=2)[1:] == ["0.99996", "paper's Table 1"]
    assert not [line for line in lines if line.endswith("not stated")], "every setting has a source"
    assert lines[-1].startswith("read from config/recipes.yaml: ofa.imagenet.msa")


def test_a_familys_recipe_has_no_remarks_of_another_family(capsys):
    def remarks(*arguments):
        lines = lines_of(capsys, "--scale", "paper", *arguments)
        return {line.split()[0]: line for line in lines[1:-1]}

    msa, cnn = remarks("recipe", "cifar100", "msa"), remarks("recipe", "cifar100", "cnn")
    assert not [line for line in msa.values() if "CNN" in line or "#14" in line]
    changed = {"color_jitter", "minimum", "warmup_epochs", "weight_decay"}
    assert {name.rpartition(".")[2] for name, line in cnn.items() if "scratch 74.01" in line} == changed
    swapped = remarks("--set", "recipes=as_printed", "recipe", "imagenet", "cnn")
    assert swapped["optimizer.weight_decay"] == cnn["optimizer.weight_decay"]


def test_every_source_of_a_recipe_is_of_a_setting_that_it_has():
    config = load(overrides={"scale": "paper"})
    settings = {
        ".".join(parts)
        for dataset, recipes in config.recipes.ofa.items()
        for family, recipe in recipes.items()
        for setting, _ in leaves(recipe.model_dump(), "")
        for parts in ((setting,), (family, setting), (dataset, family, setting))
    }
    assert config.recipes.sources.keys() <= settings | {"teacher"}


def test_the_other_reading_of_the_recipes_is_one_setting_away(capsys):
    lines = lines_of(capsys, "--scale", "paper", "--set", "recipes=as_printed", "recipe", "imagenet", "cnn")
    assert next(line for line in lines if line.startswith("epochs")).split()[1] == "300"


def test_a_dataset_that_is_not_set_names_the_setting(capsys):
    assert main(["check-data", "cifar100"]) == 1
    error = capsys.readouterr().err
    assert "config/config.yaml: data_roots.cifar100: is not set; fill in the folder of CIFAR-100" in error


def test_a_dataset_that_is_not_there_names_the_setting(capsys, tmp_path):
    roots = f"data_roots={{cifar100: {tmp_path}/gone, imagenet: null}}"
    assert main(["--set", roots, "check-data", "cifar100"]) == 1
    assert f"the folder {tmp_path}/gone does not exist" in capsys.readouterr().err


def test_a_dataset_that_is_a_file_names_the_setting(capsys, tmp_path):
    (tmp_path / "file").touch()
    roots = f"data_roots={{cifar100: {tmp_path}/file, imagenet: null}}"
    assert main(["--set", roots, "check-data", "cifar100"]) == 1
    assert f"data_roots.cifar100: {tmp_path}/file is a file, not a folder" in capsys.readouterr().err


def test_the_shipped_dataset_is_in_place(capsys, tmp_path):
    out = tmp_path / "answer.json"
    assert "fashion_mnist: in place (shipped with the package)" in lines_of(
        capsys, "check-data", "fashion_mnist", "--quick", "--out", str(out)
    )
    assert json.loads(out.read_text())["dataset"] == "fashion_mnist"


def test_fetch_weights_lists_the_teachers_tags(capsys):
    tags = lines_of(capsys, "--scale", "paper", "fetch-weights", "--list")
    assert "swin_tiny_patch4_window7_224.ms_in1k" in tags and len(tags) == len(set(tags)) == 7
    assert "needs no downloaded weights" in lines_of(capsys, "--scale", "smoke", "fetch-weights")[0]


def test_the_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "fbt_paper.cli"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "COMMAND" in done.stdout


@pytest.mark.parametrize("bug", [ValueError("a bug"), OSError("a bug"), KeyError("a bug")])
def test_a_bug_of_ours_shows_its_traceback(bug, monkeypatch):
    """Only a UserError is one line: an error of the code must not look like a mistake of the user."""

    def fail(*arguments):
        raise bug

    monkeypatch.setattr(cli, "open_flow", fail)
    with pytest.raises(type(bug)):
        main(["plan"])


def test_a_folder_in_the_way_of_a_file_is_one_line(capsys, tmp_path):
    copy = ConfigCopy(tmp_path)
    copy.path("tables/new.yaml").mkdir()
    assert main(["--config", str(copy.folder), "plan"]) == 1
    assert capsys.readouterr().err == ("fbt: config/tables/new.yaml: cannot be read: Is a directory\n")


def test_settings_may_stand_before_and_after_the_command(capsys):
    before = lines_of(capsys, "--scale", "paper", "--set", "seeds=[0, 1]", "plan", "table5")
    after = lines_of(capsys, "plan", "table5", "--scale", "paper", "--set", "seeds=[0, 1]")
    both = lines_of(capsys, "--set", "seeds=[0, 1]", "plan", "table5", "--set", "scale=paper")
    assert before == after == both
    assert before != lines_of(capsys, "plan", "table5")


def test_a_mapping_given_with_set_changes_only_the_keys_it_names():
    """As Snakemake's --config does."""
    options = cli.make_parser().parse_args(["--set", "execution={workers: 2}", "plan"])
    execution = cli.open_flow(options).config.main.execution
    assert (execution.workers, execution.log_steps) == (2, load().main.execution.log_steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--tflops", "0"], "argument --tflops: must be a number above 0 (given: 0)"),
        (["plan", "--tflops", "-3"], "argument --tflops: must be a number above 0 (given: -3)"),
        (["plan", "--tflops", "fast"], "argument --tflops: must be a number above 0 (given: fast)"),
        (["status", "--every", "0"], "argument --every: must be a number above 0 (given: 0)"),
    ],
)
def test_a_number_that_must_be_above_zero(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_mistake_on_the_command_line_is_no_problem_of_the_configuration(capsys):
    for arguments in (["plan", "tabel5"], ["--set", "recipes", "plan"], ["--set", "seeds=[", "plan"]):
        assert main(arguments) == 1
        assert "configuration" not in capsys.readouterr().err


def test_a_table_that_is_not_there_is_named_with_the_nearest():
    """What Snakemake shows for a target such as results/smoke/tables/table9.md."""
    with pytest.raises(
        UserError, match=r"there is no table 'table9'; valid: ablation, .*did you mean 'table"
    ):
        Flow({}).results_of(["table9"])
