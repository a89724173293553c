"""config/: every file is valid, and every mistake a user can make is told in one message."""

from pathlib import Path

import pytest

from fbt_paper.cli import main
from fbt_paper.config import CONFIG_FOLDER, ConfigError, load, tiny_network
from fbt_paper.schema import FILES, schema_text
from fbt_paper.workflow import changed_settings
from tests.test_paper.config_copy import ConfigCopy

ROOT = CONFIG_FOLDER.parent
TABLE = """\
kind: accuracy
title: New
caption: A new table.
target: grid
corner: Method
base: {dataset: cifar100, teacher: swin_t}
rows:
  - {key: kd, label: KD, method: kd}
columns:
  - {key: one, label: One, student: resnet18}
"""


@pytest.fixture
def copy(tmp_path):
    return ConfigCopy(tmp_path)


@pytest.mark.parametrize("scale", ["smoke", "paper"])
@pytest.mark.parametrize("recipes", ["ofa", "as_printed"])
def test_every_file_of_config_is_valid_and_plans(scale, recipes, copy):
    assert copy.plan(scale, recipes=recipes).runs


def test_every_yaml_and_csv_of_config_is_read():
    config = load()
    tables = {path.stem for path in (CONFIG_FOLDER / "tables").glob("*.yaml")}
    assert set(config.tables) == tables
    assert set(config.references) <= tables
    others = {path.name for path in CONFIG_FOLDER.glob("*.yaml")}
    assert others == {
        f"{name}.yaml" for name in ("config", "datasets", "architectures", "methods", "recipes", "smoke")
    }


@pytest.mark.parametrize("name", FILES)
def test_the_json_schemas_for_editors_are_in_step(name):
    committed = (ROOT / "workflow" / "schemas" / f"{name}.schema.json").read_text()
    assert committed == schema_text(FILES[name]), "run `python -m fbt_paper.schema`"


def test_every_architecture_has_a_tiny_twin_of_its_family():
    config = load()
    for key, entry in config.architectures.items():
        twin = tiny_network(key)
        assert (twin.architecture, twin.family, twin.weights) == (key, entry.family, "none")


BAD = {
    "unknown dataset": (
        "tables/table5.yaml",
        ("dataset: cifar100", "dataset: cifar10"),
        "config/tables/table5.yaml: base.dataset: unknown dataset 'cifar10'; valid: cifar100, fashion_mnist, "
        "fashion_mnist_full, imagenet; did you mean 'cifar100'?",
    ),
    "unknown architecture": (
        "tables/table5.yaml",
        ("teacher: swin_t,", "teacher: swin_tiny,"),
        "config/tables/table5.yaml: columns[0].teacher: unknown architecture 'swin_tiny'; valid: convnext_t,",
    ),
    "unknown method": (
        "tables/table5.yaml",
        ("method: fbt", "method: fbd"),
        "config/tables/table5.yaml: base.method: unknown method 'fbd'; valid: cc, crd,",
    ),
    "unknown parameter": (
        "tables/table5.yaml",
        ("block: vit", "blockx: vit"),
        "config/tables/table5.yaml: rows[0].parameters.blockx: unknown parameter of fbt; valid: block,",
    ),
    "no choice": (
        "tables/table5.yaml",
        ("block: vit", "block: vitt"),
        "config/tables/table5.yaml: rows[0].parameters.block: 'vitt' is not a choice; "
        "valid: none, swin, swinv2, vit; did you mean 'vit'?",
    ),
    "below the minimum": (
        "tables/table5.yaml",
        ("block: vit", "gamma: -1"),
        "config/tables/table5.yaml: rows[0].parameters.gamma: -1 is below the minimum, 1",
    ),
    "parameter of the wrong type": (
        "tables/table5.yaml",
        ("block: vit", "gamma: high"),
        "config/tables/table5.yaml: rows[0].parameters.gamma: must be a number (given: 'high')",
    ),
    "parameter as text": (
        "tables/table5.yaml",
        ("block: vit", "gamma: 1e0"),
        "config/tables/table5.yaml: rows[0].parameters.gamma: '1e0' is read as text, not as a number; "
        "write 1.0e+0,",
    ),
    "unknown key": (
        "tables/table5.yaml",
        ("caption:", "captoin:"),
        "config/tables/table5.yaml: captoin: unknown key; valid: base, caption,",
    ),
    "unknown key deep inside": (
        "smoke.yaml",
        ("momentum: 0.9", "momentun: 0.9"),
        "config/smoke.yaml: recipes.cnn.optimizer.momentun: unknown key; valid: clip_gradient, "
        "learning_rate, momentum,",
    ),
    "wrong type": (
        "datasets.yaml",
        ("classes: 100", "classes: many"),
        "config/datasets.yaml: cifar100.classes: input should be a valid integer",
    ),
    "float as text": (
        "smoke.yaml",
        ("minimum: 1.0e-4", "minimum: 1e-4"),
        "config/smoke.yaml: recipes.cnn.schedule.minimum: '1e-4' is read as text, not as a number; "
        "write 1.0e-4, without quotes",
    ),
    "doubled key": (
        "datasets.yaml",
        ("classes: 100\n", "classes: 100\n  classes: 100\n"),
        "the key 'classes' is given twice; keep one",
    ),
    "not YAML": ("datasets.yaml", ("title: CIFAR-100", "title: [CIFAR-100"), "config/datasets.yaml: line "),
    "wrong scale": (
        "config.yaml",
        ("scale: smoke", "scale: papier"),
        "config/config.yaml: scale: 'papier' is not valid here; valid: paper, smoke; did you mean 'paper'?",
    ),
    "missing key": ("config.yaml", ("seeds: [0]", "# seeds: [0]"), "config/config.yaml: seeds: is missing"),
    "no seeds": ("config.yaml", ("seeds: [0]", "seeds: []"), "config/config.yaml: seeds: "),
    "root of an unknown dataset": (
        "config.yaml",
        ("  imagenet: null", "  imagenets: null"),
        "config/config.yaml: data_roots.imagenets: unknown dataset 'imagenets'; valid:",
    ),
    "teacher is the student": (
        "tables/table5.yaml",
        ("student: resnet18", "student: swin_t"),
        "config/tables/table5.yaml: columns[0].teacher: teacher and student are both 'swin_t'",
    ),
    "one key set twice": (
        "tables/table5.yaml",
        ("parameters: {block: vit}", "parameters: {block: vit}, method: kd"),
        "config/tables/table5.yaml: rows[0].method: sets method a second time: 'kd' here, "
        "'fbt' in base.method;",
    ),
    "setting left out": (
        "tables/table5.yaml",
        ("dataset: cifar100, ", ""),
        "no `dataset` is set; set it in the base, the row or the column",
    ),
    "two rows of one key": (
        "tables/table5.yaml",
        ("key: swin_block", "key: vit_block"),
        "config/tables/table5.yaml: rows[1].key: the key 'vit_block' is given twice",
    ),
    "hostile key": (
        "tables/table5.yaml",
        ("key: vit_block", "key: '$(rm -rf x)'"),
        "config/tables/table5.yaml: rows[0].key: '$(rm -rf x)' has a form that is not allowed here",
    ),
    "printed number without a cell": (
        "tables/table5.reference.csv",
        ("vit_block,swin_t__resnet18", "vit_blockx,swin_t__resnet18"),
        "config/tables/table5.reference.csv: line 2: unknown row 'vit_blockx'; valid:",
    ),
    "printed number that is none": (
        "tables/table5.reference.csv",
        ("81.05", "81,05"),
        "config/tables/table5.reference.csv: line 2",
    ),
    "no such kind of table": (
        "tables/table5.yaml",
        ("kind: accuracy", "kind: accuracyy"),
        "config/tables/table5.yaml: kind: 'accuracyy' is not valid here; valid: accuracy, cost; "
        "did you mean 'accuracy'?",
    ),
    "value of methods.yaml": (
        "methods.yaml",
        ("gamma: {value: 1.0,", "gamma: {value: 0.5,"),
        "config/methods.yaml: fbt.parameters.gamma.value: 0.5 is below the minimum, 1",
    ),
    "wrong change of a recipe": (
        "tables/table5.yaml",
        ("parameters: {block: vit}", "parameters: {block: vit}, recipe: {epoch: 3}"),
        "config/tables/table5.yaml: rows[0].recipe.epoch: unknown key of a recipe; "
        "valid: allow_changed_batch, augmentation,",
    ),
    "another student in a second phase": (
        "tables/table3.yaml",
        ("start: {teacher: swin_t, method: kd}", "start: {teacher: swin_t, method: kd, student: resnet34}"),
        "config/tables/table3.yaml: rows[3].start: a phase goes on with the same student, "
        "'resnet18', not another",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_ends_the_command_with_one_message_and_no_file(case, copy, tmp_path, monkeypatch, capsys):
    file, (old, new), expected = BAD[case]
    copy.replace(file, old, new)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["plan"]) == 1
    assert sorted(tmp_path.rglob("*")) == before
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("fbt: ")
    assert expected in output.err
    assert "Traceback" not in output.err


def test_all_mistakes_of_a_file_are_told_at_once(copy):
    copy.replace("datasets.yaml", "classes: 100", "classes: many")
    copy.replace("datasets.yaml", "loader: image_folder\n", "loader: image_foldre\n")
    copy.replace("datasets.yaml", "title: CIFAR-100", "titlex: CIFAR-100")
    problems = copy.problems()
    assert [problem for problem in problems if "cifar100.classes" in problem]
    assert [problem for problem in problems if "imagenet.loader" in problem]
    assert [problem for problem in problems if "cifar100.titlex: unknown key" in problem]
    assert [problem for problem in problems if "cifar100.title: is missing" in problem]


def test_mistakes_of_several_files_are_told_at_once(copy):
    copy.replace("datasets.yaml", "classes: 100", "classes: many")
    copy.replace("config.yaml", "scale: smoke", "scale: smok")
    copy.path("recipes.yaml").unlink()
    with pytest.raises(ConfigError) as caught:
        copy.load()
    assert {problem.file for problem in caught.value.problems} == {
        "config/datasets.yaml",
        "config/config.yaml",
        "config/recipes.yaml",
    }


def test_an_empty_cell_setting_is_told_once_for_all_its_cells(copy):
    copy.replace("tables/table5.yaml", "method: fbt", "method: fbd")
    assert len([problem for problem in copy.problems() if "base.method" in problem]) == 1


def test_a_wrong_setting_on_the_command_line_is_told(copy):
    with pytest.raises(ConfigError, match="config/config.yaml: scal: unknown key; .* did you mean 'scale'"):
        copy.load({"scal": "paper"})


def test_lists_given_on_the_command_line_are_typed_as_in_the_file(copy):
    given = {"seeds": ["0", "1"], "data_roots": {"cifar100": "/data", "imagenet": "null"}, "scale": "paper"}
    config = copy.load(changed_settings(given, copy.folder))
    assert config.main.seeds == (0, 1)
    assert config.main.data_roots == {"cifar100": "/data", "imagenet": None}


def test_a_list_of_wrong_items_is_told_by_its_items_only(copy):
    copy.replace("config.yaml", "seeds: [0]", "seeds: [zero]")
    assert [problem.partition(": ")[2].partition(":")[0] for problem in copy.problems()] == ["seeds[0]"]


def test_a_new_table_file_is_a_new_table(copy):
    copy.write("tables/new.yaml", TABLE)
    assert "new" in copy.plan().tables


def test_missing_config_folder(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"config\.yaml: the file is missing"):
        load(tmp_path)
