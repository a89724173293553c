"""config/: every file is valid, and every mistake a user can make is reported in one message."""

import re
from pathlib import Path

import pytest

from fbt_paper.cli import main
from fbt_paper.config.claims import load_claims
from fbt_paper.config.load import CONFIG_FOLDER, ConfigError, load, tiny_network
from fbt_paper.config.timm_names import timm_names
from fbt_paper.plan.targets import Flow, changed_settings
from fbt_paper.schemas import all_files, schema_text
from tests.test_paper.config_copy import ARCHITECTURES, ConfigCopy

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
    read = ("config", "datasets", "architectures", "methods", "recipes", "claims", "teachers")
    assert others == {f"{name}.yaml" for name in read}
    assert load_claims(config)


@pytest.mark.parametrize("name", all_files())
def test_the_json_schemas_for_editors_are_in_step(name):
    committed = (ROOT / "workflow" / "schemas" / f"{name}.schema.json").read_text()
    assert committed == schema_text(all_files()[name]), "run `python -m fbt_paper.schemas`"


def test_every_architecture_of_the_paper_has_a_tiny_twin_of_its_family():
    config = load()
    assert set(config.scale.architectures) >= ARCHITECTURES
    for key in sorted(ARCHITECTURES):
        twin, family = tiny_network(key), config.architectures[key].family
        assert (twin.architecture, twin.family, twin.weights) == (key, family, "none")


BAD = {
    "unknown dataset": (
        "tables/table5.yaml",
        ("dataset: cifar100", "dataset: cifar10"),
        "config/tables/table5.yaml: base.dataset: unknown dataset 'cifar10'; valid: cifar100, "
        "cifar100_112, fashion_mnist, fashion_mnist_20k, fashion_mnist_full, imagenet; did you mean "
        "'cifar100'?",
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
        "scales/smoke.yaml",
        ("momentum: 0.9", "momentun: 0.9"),
        "config/scales/smoke.yaml: recipes.cnn.optimizer.momentun: unknown key; valid: clip_gradient, "
        "learning_rate, momentum,",
    ),
    "wrong type": (
        "datasets.yaml",
        ("classes: 100", "classes: many"),
        "config/datasets.yaml: cifar100.classes: must be a whole number (given: 'many')",
    ),
    "float as text": (
        "scales/smoke.yaml",
        ("minimum: 1.0e-4", "minimum: 1e-4"),
        "config/scales/smoke.yaml: recipes.cnn.schedule.minimum: '1e-4' is read as text, not as a number; "
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
        "config/config.yaml: scale: unknown scale 'papier'; valid: mini, paper, pilot, smoke; "
        "did you mean 'paper'?",
    ),
    "missing key": ("config.yaml", ("seeds: null", "# seeds:"), "config/config.yaml: seeds: is missing"),
    "no seeds": ("config.yaml", ("seeds: null", "seeds: []"), "config/config.yaml: seeds: "),
    "root of an unknown dataset": (
        "config.yaml",
        ("  imagenet: null", "  imagenets: null"),
        "config/config.yaml: data_roots.imagenets: unknown dataset 'imagenets'; valid:",
    ),
    "teacher is the student's own run": (
        "tables/table3.yaml",
        (
            "teacher: resnet34\n    start: {teacher: swin_t, method: kd}",
            "teacher: {student: resnet18, teacher: swin_t, method: kd}\n"
            "    start: {teacher: swin_t, method: kd}",
        ),
        "config/tables/table3.yaml: rows[3].teacher: the teacher is the student's own run fashion_mnist-kd-",
    ),
    "by_dataset of an unknown dataset": (
        "methods.yaml",
        ("by_dataset: {imagenet: 1.5}", "by_dataset: {imagenett: 1.5}"),
        "config/methods.yaml: fbt.parameters.gamma.by_dataset.imagenett: unknown dataset 'imagenett'; valid:",
    ),
    "by_scale of an unknown scale": (
        "methods.yaml",
        ("by_scale: {smoke: 256}", "by_scale: {smok: 256}"),
        "config/methods.yaml: crd.parameters.negatives.by_scale.smok: unknown scale 'smok'; "
        "valid: mini, paper, pilot, smoke; did you mean 'smoke'?",
    ),
    "parameter that the code lacks": (
        "methods.yaml",
        ("    alpha: {value", "    alfa: {value"),
        "config/methods.yaml: dkd.parameters.alfa: fbt_core/methods/dkd.py takes no such parameter; "
        "valid: alpha, beta, entropy_bound, entropy_temperature, image_weight, label_weight, standardise, "
        "temperature; did you mean 'alpha'?",
    ),
    "parameter left out": (
        "methods.yaml",
        ('    alpha: {value: 1.0, minimum: 0, source: "docs/paper-facts.md#dkd: alpha 1"}\n', ""),
        "config/methods.yaml: dkd.parameters.alpha: is missing; fbt_core/methods/dkd.py takes it",
    ),
    "parameter of another type than the code's": (
        "methods.yaml",
        ("alpha: {value: 1.0", "alpha: {value: high"),
        "config/methods.yaml: dkd.parameters.alpha.value: must be a number (given: 'high')",
    ),
    "revision of older code": (
        "methods.yaml",
        ("  revision: 2\n", "  revision: 1\n"),
        "config/methods.yaml: fbt.revision: 1, but fbt_core/methods/fbt.py has revision 2; see what ",
    ),
    "choice that the code lacks": (
        "methods.yaml",
        ("choices: [symmetric, one_way]", "choices: [symmetric, one_wai]"),
        "config/methods.yaml: fitnet.parameters.direction.choices: fbt_core/methods/fitnet.py knows no "
        "'one_wai'; valid: one_way, symmetric; did you mean 'one_way'?",
    ),
    "method without a file": (
        "methods.yaml",
        ("\ndkd:\n", "\ndkdd:\n"),
        "config/methods.yaml: dkdd: there is no file fbt_core/methods/dkdd.py; valid: cc,",
    ),
    "rule of an unknown parameter": (
        "methods.yaml",
        ("when: {loss: infonce}", "when: {lose: infonce}"),
        "config/methods.yaml: fitnet.demands[0].when: unknown parameter 'lose'; valid: direction,",
    ),
    "parameters that do not go together": (
        "tables/table4.yaml",
        ("{features: final, loss: mse}", "{features: final, loss: infonce}"),
        "config/tables/table4.yaml: rows[3].parameters.loss: loss infonce needs features final_pooled: ",
    ),
    "parameter above another": (
        "tables/table2.yaml",
        ("label: Our FBT, method: fbt", "label: FBT, method: fbt, parameters: {temperature_initial: 2.0}"),
        "config/tables/table2.yaml: rows[1].parameters.temperature_initial: temperature_initial, 2.0, "
        "is above temperature_max, 1.0",
    ),
    "defaults that do not go together": (
        "methods.yaml",
        ("temperature_initial: {value: 0.07", "temperature_initial: {value: 1.5"),
        "config/methods.yaml: fitnet: temperature_initial, 1.5, is above temperature_max, 1.0",
    ),
    "sgd without momentum": (
        "scales/smoke.yaml",
        ("      momentum: 0.9\n", ""),
        "config/scales/smoke.yaml: recipes.cnn.optimizer: sgd needs its momentum",
    ),
    "steps without milestones": (
        "recipes.yaml",
        (", milestones: [30, 60, 90]", ""),
        "config/recipes.yaml: ofa.imagenet.cnn.schedule: schedule 'step' needs milestones and factor",
    ),
    "no RandAugment": (
        "recipes.yaml",
        ("rand-m9-mstd0.5-inc1", "rand-x9"),
        "config/recipes.yaml: ofa.cifar100.msa.augmentation.rand_augment: 'rand-x9' is not RandAugment: ",
    ),
    "longer warm-up than training": (
        "recipes.yaml",
        ("warmup_epochs: 3,", "warmup_epochs: 301,"),
        "config/recipes.yaml: ofa.cifar100.cnn: schedule.warmup_epochs, 301, is more than epochs, 300",
    ),
    "recipes of an unknown dataset": (
        "recipes.yaml",
        ("ofa:\n  cifar100:", "ofa:\n  cifar10:"),
        "config/recipes.yaml: ofa.cifar10: unknown dataset 'cifar10'; valid: cifar100,",
    ),
    "recipes of an unknown role": (
        "recipes.yaml",
        ("    teacher: &fine_tune", "    teecher: &fine_tune"),
        "config/recipes.yaml: ofa.cifar100.teecher: 'teecher' is not valid here; valid: cnn, mlp, msa, "
        "teacher; did you mean 'teacher'?",
    ),
    "unknown set of recipes": (
        "recipes.yaml",
        ("\nas_printed:", "\nas_printd:"),
        "config/recipes.yaml: as_printd: unknown key; valid: as_printed, ofa, sources; "
        "did you mean 'as_printed'?",
    ),
    "empty set of recipes": (
        "recipes.yaml",
        ("\nas_printed:", "\nas_printed:\n\nrest:"),
        "config/recipes.yaml: as_printed: must be keys with values (given: nothing)",
    ),
    "empty dataset of recipes": (
        "recipes.yaml",
        ("as_printed:\n  cifar100:\n", "as_printed:\n  cifar100: {}\n  imagenet_too:\n"),
        "config/recipes.yaml: as_printed.cifar100: ",
    ),
    "sources that are no text": (
        "recipes.yaml",
        ("  epochs: paper's Table 1", "  epochs: [1]"),
        "config/recipes.yaml: sources.epochs: must be a text (given: [1])",
    ),
    "key that is a list": (
        "recipes.yaml",
        ("sources: ", "? [a, b]\n: 3\nsources: "),
        "config/recipes.yaml: line 8: a key must be text;",
    ),
    "key that YAML reads as true": (
        "recipes.yaml",
        ("  epochs: paper's", "  yes: paper's"),
        "config/recipes.yaml: line 10: a key must be text (given: yes); put quotes around",
    ),
    "network that timm lacks": (
        "architectures.yaml",
        ("create: resnet18", "create: resnet81"),
        "config/architectures.yaml: resnet18.create: timm has no 'resnet81'; did you mean 'resnet18'",
    ),
    "class that timm lacks": (
        "scales/smoke.yaml",
        ("timm.models.mlp_mixer:MlpMixer", "timm.models.mlp_mixer:MlpMixr"),
        "config/scales/smoke.yaml: architectures.mixer_b16.create: timm has no "
        "'timm.models.mlp_mixer:MlpMixr'; valid in timm.models.mlp_mixer: ",
    ),
    "unknown architecture of the cost table": (
        "tables/table6.yaml",
        ("student: resnet18", "student: resnet81"),
        "config/tables/table6.yaml: rows[0].student: unknown architecture 'resnet81'; valid: convnext_t,",
    ),
    "gain over nothing": (
        "tables/cifar100.yaml",
        ("over: scratch", "over: scratchh"),
        "config/tables/cifar100.yaml: gain.over: unknown column 'scratchh'; valid: cc,",
    ),
    "printed number with a value too many": (
        "tables/table5.reference.csv",
        ("81.05,", "81.05,7,"),
        "config/tables/table5.reference.csv: line 2: has more values than the first line has names (6)",
    ),
    "printed number with a value too few": (
        "tables/table5.reference.csv",
        (',81.05,"FBT, appendix Table 5",primary,', ""),
        "config/tables/table5.reference.csv: line 2.value: is missing",
    ),
    "wrong change deep inside a recipe": (
        "tables/table5.yaml",
        ("parameters: {block: vit}", "recipe: {optimizer: {momentun: 0.8}}"),
        "config/tables/table5.yaml: rows[0].recipe.optimizer.momentun: unknown key; valid: clip_gradient,",
    ),
    "folder of a dataset that is shipped": (
        "config.yaml",
        ("  cifar100: null", "  fashion_mnist: /data\n  cifar100: null"),
        "config/config.yaml: data_roots.fashion_mnist: its images are shipped with the package, so it "
        "takes no folder; valid: cifar100, cifar100_112, fashion_mnist_full, imagenet; did you mean "
        "'fashion_mnist_full'?",
    ),
    "one wrong key of a row": (
        "tables/table5.yaml",
        ("label: ViT Block", "labell: ViT Block"),
        "config/tables/table5.yaml: rows[0].labell: unknown key; valid: dataset, key, label,",
    ),
    "infinite number": (
        "methods.yaml",
        ("logit_weight: {value: 1.0", "logit_weight: {value: .inf"),
        "config/methods.yaml: kd.parameters.logit_weight.value: must be a finite number (given: inf)",
    ),
    "mapping as a parameter": (
        "tables/table5.yaml",
        ("block: vit", "gamma: {a: 1}"),
        "config/tables/table5.yaml: rows[0].parameters.gamma: must be a number, a text, true, false or a",
    ),
    "label that YAML reads as false": (
        "tables/table5.yaml",
        ("label: ViT Block", "label: no"),
        "config/tables/table5.yaml: rows[0].label: must be a text, but YAML reads this as true or false "
        "(given: False); put quotes around it",
    ),
    "label that YAML reads as a number": (
        "tables/table5.yaml",
        ("label: ViT Block", "label: 1.0"),
        "rows[0].label: must be a text, but YAML reads this as a number (given: 1.0); put quotes around it",
    ),
    "mapping that holds itself": (
        "tables/table5.yaml",
        ("base: {", "base: &base {before: *base, "),
        "config/tables/table5.yaml: a mapping or a list holds itself",
    ),
    "tab": (
        "tables/table5.yaml",
        ("title: Table 5\n", "title: Table 5\n\ttarget: x\n"),
        "config/tables/table5.yaml: line 4: a tab indents this line; indent with blanks",
    ),
    "brace that is not closed": (
        "tables/table5.yaml",
        ("method: fbt}", "method: fbt"),
        "config/tables/table5.yaml: line 7: the bracket or brace that opens here is not closed",
    ),
    "YAML that would run a command": (
        "tables/table5.yaml",
        ("label: ViT Block", "label: !!python/object/apply:os.mkdir [ran]"),
        "config/tables/table5.yaml: line 9: a value begins with !; put quotes around it",
    ),
    "day that does not exist": (
        "tables/table5.yaml",
        ("label: ViT Block", "label: 2024-02-30"),
        "config/tables/table5.yaml: is not YAML (day is out of range for month); put quotes around a text",
    ),
    "doubled seeds": (
        "config.yaml",
        ("seeds: null", "seeds: [1, 0, 1]"),
        "config/config.yaml: seeds[2]: 1 is given twice",
    ),
    "key of a figure": (
        "figures/figure2.yaml",
        ("measure: 256", "measur: 256"),
        "config/figures/figure2.yaml: measur: unknown key; valid: caption, dataset,",
    ),
    "figure of a claim": (
        "claims.yaml",
        ("figure: figure2", "figure: figure3"),
        "config/claims.yaml: claims[0].figure: unknown figure 'figure3'; valid: curves, figure1, figure2,",
    ),
    "table of a claim": (
        "claims.yaml",
        ("better: table2/", "better: table22/"),
        "config/claims.yaml: claims[0].better: unknown table 'table22'; valid: ablation,",
    ),
    "cell of a figure": (
        "figures/similarity.yaml",
        ("row: fbt, column: swin_t__resnet18", "row: fbt, column: swin"),
        "config/figures/similarity.yaml: cells[0]: table 'table2' has no cell 'fbt, swin'; valid:",
    ),
    "skipped cell": (
        "tables/table5.yaml",
        ("corner:", "skip: [[vit_bloc, swin_t__resnet18]]\ncorner:"),
        "config/tables/table5.yaml: skip[0][0]: unknown row 'vit_bloc'; valid: swin_block, vit_block;",
    ),
    "scale that extends nothing": (
        "scales/paper.yaml",
        ("seeds: [0]", "extends: smoek"),
        "config/scales/paper.yaml: extends: unknown scale 'smoek'; valid: mini, paper, pilot, smoke; "
        "did you mean",
    ),
    "scale that extends itself": (
        "scales/smoke.yaml",
        ("seeds: [0]", "extends: smoke"),
        "config/scales/smoke.yaml: extends: a scale cannot extend itself (smoke -> smoke)",
    ),
    "seeds of an unknown scale": (
        "tables/table4.yaml",
        ("seeds: {smoke:", "seeds: {smok:"),
        "config/tables/table4.yaml: seeds.smok: unknown scale 'smok'; valid: mini, paper, pilot, smoke; "
        "did you mean",
    ),
    "half a normalisation": (
        "config.yaml",
        (
            "teacher_files: {}",
            f"teacher_files: {{cifar100: {{swin_t: {{path: x, sha256: {'ab' * 32}, std: [1, 1, 1]}}}}}}",
        ),
        "config/config.yaml: teacher_files.cifar100.swin_t: mean and std belong together",
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
        "config/tables/table5.reference.csv: line 2.row: unknown row 'vit_blockx'; valid:",
    ),
    "printed number that is none": (
        "tables/table5.reference.csv",
        ("81.05", "81,05"),
        "config/tables/table5.reference.csv: line 2",
    ),
    "no such kind of table": (
        "tables/table5.yaml",
        ("kind: accuracy", "kind: accuracyy"),
        "config/tables/table5.yaml: kind: 'accuracyy' is not valid here; valid: accuracy, cost, recipes; "
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


def without_indices(text: str) -> str:
    """A message without the numbers of rows and columns: config/ may get more of them."""
    return re.sub(r"\[\d+\]", "[n]", text)


def test_a_mistake_is_reported_with_the_index_of_its_row_and_column(copy):
    column = "columns:\n  - {key: zero, label: Zero, student: vit_s}\n"
    copy.write(
        "tables/new.yaml", TABLE.replace("columns:\n", column).replace("student: resnet18", "student: x")
    )
    (problem,) = copy.problems()
    assert problem.startswith("config/tables/new.yaml: columns[1].student: unknown architecture 'x'")


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
    assert without_indices(expected) in without_indices(output.err)
    assert "Traceback" not in output.err


def test_all_mistakes_of_a_file_are_reported_at_once(copy):
    copy.replace("datasets.yaml", "classes: 100", "classes: many")
    copy.replace("datasets.yaml", "loader: image_folder\n", "loader: image_foldre\n")
    copy.replace("datasets.yaml", "title: CIFAR-100", "titlex: CIFAR-100")
    problems = copy.problems()
    assert [problem for problem in problems if "cifar100.classes" in problem]
    assert [problem for problem in problems if "imagenet.loader" in problem]
    assert [problem for problem in problems if "cifar100.titlex: unknown key" in problem]
    assert [problem for problem in problems if "cifar100.title: is missing" in problem]


TOGETHER = {
    "teacher and student of a column": (
        ("tables/table5.yaml", "teacher: swin_t, student: resnet18", "teacher: swin_tt, student: resnet81"),
        ["columns[0].student: unknown architecture", "columns[0].teacher: unknown architecture"],
    ),
    "dataset and method of the base": (
        ("tables/table5.yaml", "dataset: cifar100, method: fbt", "dataset: cifar10, method: fbd"),
        ["base.dataset: unknown dataset", "base.method: unknown method"],
    ),
    "teacher and method of the phase before": (
        (
            "tables/table3.yaml",
            "start: {teacher: swin_t, method: kd}",
            "start: {teacher: swin_tt, method: kdd}",
        ),
        ["rows[3].start.teacher: unknown architecture", "rows[3].start.method: unknown method"],
    ),
    "a wrong key and an unknown name": (
        (
            "tables/table5.yaml",
            "block: vit}}",
            "blockx: vit}, labell: x}\n  - {key: x, label: X, parameters: {block: vitt}, teacher: swin_tt}",
        ),
        [
            "rows[0].labell: unknown key",
            "rows[0].parameters.blockx: unknown parameter",
            "rows[1].parameters.block: 'vitt' is not a choice",
            "rows[1].teacher: unknown architecture",
        ],
    ),
    "a method's entry and the names of another": (
        (
            "methods.yaml",
            "    alpha: {value: 1.0, ",
            "    alpha: {value_: 1.0, by_dataset: {imagenett: 1.0}, ",
        ),
        ["dkd.parameters.alpha.value_: unknown key", "dkd.parameters.alpha.value: is missing"],
    ),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_one_mistake_does_not_hide_another(case, copy):
    edit, expected = TOGETHER[case]
    copy.replace(*edit)
    problems = copy.problems()
    shown = [without_indices(problem) for problem in problems]
    assert all(any(f": {without_indices(text)}" in problem for problem in shown) for text in expected), shown


def test_printed_numbers_that_are_not_utf_8_are_reported(copy):
    copy.path("tables/table5.reference.csv").write_bytes(
        b"row,column,value,source,status\n\xff,x,1,s,primary\n"
    )
    (problem,) = copy.problems()
    assert problem.startswith("config/tables/table5.reference.csv: is not UTF-8 text: ")


TABLE_5 = "tables/table5.reference.csv"
NUMBER = "vit_block,swin_t__resnet18,81.05,paper,primary,\n"
AS_SPREADSHEETS_SAVE_IT = {
    "mark at the beginning": f"\ufeffrow,column,value,source,status,note\n{NUMBER}",
    "semicolons and decimal commas": "row;column;value;source;status;note\r\n"
    "vit_block;swin_t__resnet18;81,05;paper;primary;\r\n",
    "tabs": f"row,column,value,source,status,note\n{NUMBER}".replace(",", "\t"),
    "blank lines": f"row,column,value,source,status,note\n,,,,,\n{NUMBER},,,,,\n\n",
    "an empty column": f"row,column,value,source,status,note,\n{NUMBER}",
    "no notes": "row,column,value,source,status\nvit_block,swin_t__resnet18,81.05,paper,primary\n",
}


@pytest.mark.parametrize("case", AS_SPREADSHEETS_SAVE_IT)
def test_printed_numbers_saved_by_a_spreadsheet_are_read(case, copy):
    copy.path(TABLE_5).write_text(AS_SPREADSHEETS_SAVE_IT[case], encoding="utf-8", newline="")
    (row,) = copy.load().references["table5"]
    assert (row.row, row.column, row.value) == ("vit_block", "swin_t__resnet18", 81.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NUMBER, f"config/{TABLE_5}: line 1: must name the columns (row,column,value,source,status,note)"),
        (
            f"row,column,value,source,status,note\n\n{NUMBER}{NUMBER}",
            "line 4: vit_block, swin_t__resnet",
        ),
        ('row,column,value,source,status\nvit_block,x,1,"a" b,primary\n', "line 2: is not CSV"),
        ('row,column,value,source,status\nvit_block,x,"81,05",p,primary\n', "line 2.value: must be a number"),
    ],
)
def test_a_line_of_printed_numbers_is_named(text, message, copy):
    copy.write(TABLE_5, text)
    assert any(message in problem for problem in copy.problems()), copy.problems()


def test_hidden_files_are_left_out_and_another_ending_is_named(copy):
    """An editor's lock, the copies that a Mac makes: they lie in many people's folders."""
    before = copy.load()
    for name in ("tables/.#table5.yaml", "tables/._table5.yaml", "tables/._table5.reference.csv"):
        copy.write(name, "\0")
    copy.write("figures/._figure1.yaml", "\0")
    assert copy.load() == before
    copy.write("tables/table7.yml", TABLE)
    (problem,) = copy.problems()
    assert problem.startswith("config/tables/table7.yml: is not read") and "table7.yaml" in problem
    copy.path("recipes.yaml").rename(copy.path("recipes.yml"))
    assert any(problem.startswith("config/recipes.yml: is not read") for problem in copy.problems())


@pytest.mark.parametrize("name", ["tables/table5.yaml", "figures/figure1.yaml", "recipes.yaml"])
def test_an_empty_file_is_named_with_its_folder(name, copy):
    copy.write(name, "# nothing yet\n")
    assert f"config/{name}: the file is empty; it must hold keys with values" in copy.problems()


def test_no_message_repeats_a_whole_table(copy):
    """One wrong key of a row once printed all rows as well."""
    copy.replace("tables/cifar100.yaml", "label:", "labell:")
    problems = copy.problems()
    assert len(problems) == 2 and all(len(problem) < 400 for problem in problems)


MINI = """\
extends: smoke
title: an evening
seeds: [0, 1]
recipes: {cnn: {epochs: 9}}
trainings: {minutes: 60}
"""


def test_a_scale_of_ones_own_is_one_file_that_states_what_differs(copy):
    copy.write("scales/evening.yaml", MINI)
    smoke, evening = copy.load(), copy.load({"scale": "evening"})
    assert evening.scale.recipes["cnn"] == smoke.scale.recipes["cnn"].model_copy(update={"epochs": 9})
    assert evening.scale.recipes["msa"] == smoke.scale.recipes["msa"]
    assert (evening.scale.architectures, evening.scale.datasets) == (
        smoke.scale.architectures,
        smoke.scale.datasets,
    )
    assert (evening.scale.trainings.minutes, evening.scale.trainings.threads) == (60, 1)

    whole = copy.plan("evening")
    assert whole.all_tables == copy.plan("smoke").all_tables
    assert len(whole.tables["table5"].runs) == 2 * len(copy.plan("smoke").tables["table5"].runs)
    assert {run.seed for run in whole.runs.values()} == {0, 1, 2}, (
        "Table 4's seeds of smoke count here as well"
    )
    negatives = {r.method.parameters["negatives"] for r in whole.runs.values() if r.method.name == "crd"}
    assert negatives == {256}, "as at smoke, not the paper's 16,384"
    flow = Flow({"scale": "evening"}, copy.folder)
    assert flow.results == "results/evening"
    assert flow.training_resources == {"mem_mb": 1500, "runtime": 60, "gpu": 0}


def test_a_scale_of_a_scale_of_its_own(copy):
    copy.write("scales/evening.yaml", MINI)
    copy.write("scales/midi.yaml", "extends: evening\ntitle: a night\ntargets: [tables, grid]\n")
    config = copy.load({"scale": "midi"})
    assert config.lineage == ("midi", "evening", "smoke")
    assert (config.scale.seeds, config.scale.recipes["cnn"].epochs) == ((0, 1), 9)
    assert set(copy.plan("midi").all_tables) == set(config.tables)


def test_a_mistake_in_a_scale_is_reported_once_in_the_file_that_states_it(copy):
    copy.write("scales/evening.yaml", MINI.replace("[0, 1]", "[0, 0]"))
    copy.replace("scales/smoke.yaml", "momentum: 0.9", "momentun: 0.9")
    problems = copy.problems()
    assert len([problem for problem in problems if "momentun" in problem]) == 1
    assert "config/scales/evening.yaml: seeds[1]: 0 is given twice" in problems


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_seeds_that_are_given_count_at_every_scale(scale, copy):
    """At scale smoke they were once overruled without a word."""
    runs = copy.plan(scale).tables["table5"].runs
    assert len(copy.plan(scale, seeds=[3, 4]).tables["table5"].runs) == 2 * len(runs)


def test_the_names_read_from_timms_source_are_those_it_has():
    timm = pytest.importorskip("timm")
    assert set(timm.list_models()) <= timm_names()
    assert all(timm.is_model(name) for name in timm_names())


def test_mistakes_of_several_files_are_reported_at_once(copy):
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


def test_an_empty_cell_setting_is_reported_once_for_all_its_cells(copy):
    copy.replace("tables/table5.yaml", "method: fbt", "method: fbd")
    assert len([problem for problem in copy.problems() if "base.method" in problem]) == 1


def test_a_wrong_setting_on_the_command_line_is_reported(copy):
    with pytest.raises(ConfigError, match="config/config.yaml: scal: unknown key; .* did you mean 'scale'"):
        copy.load({"scal": "paper"})


def test_lists_given_on_the_command_line_are_typed_as_in_the_file(copy):
    settings = {
        "seeds": ["0", "1"],
        "data_roots": {"cifar100": "/data", "imagenet": "null"},
        "scale": "paper",
    }
    config = copy.load(changed_settings(settings, copy.folder))
    assert config.main.seeds == (0, 1)
    assert config.main.data_roots["cifar100"] == "/data"
    assert {root for name, root in config.main.data_roots.items() if name != "cifar100"} == {None}


def test_a_list_of_wrong_items_is_reported_by_its_items_only(copy):
    copy.replace("config.yaml", "seeds: null", "seeds: [zero]")
    assert [problem.partition(": ")[2].partition(":")[0] for problem in copy.problems()] == ["seeds[0]"]


def test_a_new_table_file_is_a_new_table(copy):
    copy.write("tables/new.yaml", TABLE)
    assert "new" in copy.plan().tables


def test_missing_config_folder(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"config\.yaml: the file is missing"):
        load(tmp_path)


def test_every_open_point_that_is_an_option_is_listed():
    text = (CONFIG_FOLDER / "README.md").read_text().split("## Open points of the paper")[1]
    parameters = load().methods["fbt"].parameters
    assert [name for name, entry in parameters.items() if entry.source.startswith("open")]
    for name, entry in parameters.items():
        assert not entry.source.startswith("open") or f"`{name}`" in text, name
    for setting in ("recipes", "score", "teacher_normalisation", "branch_depth", "split"):
        assert f"`{setting}`" in text


def test_the_label_of_a_scale_names_what_is_really_trained(copy):
    assert copy.load({"scale": "paper"}).scale_label == ""
    copy.write(
        "scales/evening.yaml",
        MINI + "datasets: {cifar100: fashion_mnist_full, imagenet: fashion_mnist_full}\n",
    )
    assert copy.load({"scale": "evening"}).scale_label.startswith("EVENING: tiny networks on Fashion-MNIST. ")
    assert "SMOKE: tiny networks on Fashion-MNIST (10,000 + 5,000 images)." in copy.load().scale_label


def test_captions_and_heads_name_the_data_really_used(copy):
    def heads(scale, table):
        return [line.label for line in copy.load({"scale": scale}).tables[table].columns]

    assert " on CIFAR-100 (" in copy.load({"scale": "paper"}).tables["table3"].caption
    assert " on Fashion-MNIST for CIFAR-100 (" in copy.load({"scale": "mini"}).tables["table3"].caption
    assert " on CIFAR-100 at 112 px (" in copy.load({"scale": "pilot"}).tables["table3"].caption
    assert heads("paper", "table3") == ["CIFAR100"]
    assert heads("smoke", "table3") == ["Fashion-MNIST for CIFAR100"]
    # The ablation has both of the paper's datasets: its columns stay apart.
    assert len(set(heads("smoke", "ablation"))) == len(heads("paper", "ablation"))
    # No table of a scale whose data stand in names the paper's data alone.
    for key, table in copy.load({"scale": "smoke"}).tables.items():
        if table.kind == "accuracy":
            words = [table.caption, *(line.label for line in (*table.rows, *table.columns))]
            assert not [text for text in words if re.search("(?<!for )(CIFAR|ImageNet)-?1", text)], key
