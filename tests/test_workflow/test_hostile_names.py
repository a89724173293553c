"""Names and paths that want to leave the results folder or reach a shell: refused, or passed on unchanged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from fbt_core.errors import UserError
from fbt_core.spec import ID_PATTERN, NetworkSpec, parse_spec
from fbt_core.weights import WeightSources, load_weights
from fbt_paper.config.load import load
from fbt_paper.plan.runs import plan
from tests.test_core.engine_runs import arguments, in_child, make_spec, network, write_images
from tests.test_workflow.workflow_copy import WorkflowCopy

HOSTILE = {
    "up": "../../escaped",
    "absolute": "/tmp/escaped",
    "spaces": "two  words ",
    "quotes": 'it\'s "quoted"',
    "command": "$(touch ran)",
    "backticks": "`touch ran`",
    "semicolon": "x; touch ran #",
    "braces": "{run} {{x}} {0}",
    "newline": "one\ntouch ran",
    "long": "x" * 300,
    "unicode": "Größe – 学生 🐍",
}
SPACES = pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
FOLDER = 'it\'s "a" $(touch ran) `touch ran`; touch ran {run} \n – 学生 ' + "x" * 150
LABEL = " ".join(text for text in HOSTILE.values() if "\n" not in text)
ENGINE = '(folder / "settings.json").write_text(options.settings)\n'


def ran(folder: Path) -> list[Path]:
    """Traces of a command that a name carried."""
    return [path for name in ("ran", "escaped*") for path in folder.rglob(name)]


@SPACES
@pytest.mark.parametrize("path", ["dataset.name", "student.architecture", "method.name"])
def test_a_name_that_enters_the_run_id_is_refused(path, name):
    content = json.loads(make_spec().model_dump_json())
    part, _, key = path.partition(".")
    content[part][key] = name
    with pytest.raises(ValidationError, match=path.replace(".", r"\.")):
        parse_spec(json.dumps(content))


@SPACES
def test_a_run_that_weights_come_from_stays_inside_the_results(name, tmp_path):
    assert not ID_PATTERN.fullmatch(name)
    spec = NetworkSpec(**network(weights=f"run:{name}"))
    with pytest.raises(UserError, match="not a run id"):
        load_weights(None, spec, WeightSources(tmp_path, {}), new_head=False)


def test_the_engine_takes_any_folder_as_it_is(tmp_path):
    root, runs = write_images(tmp_path / FOLDER / "data"), tmp_path / FOLDER / "runs" / ("y" * 200)
    spec = make_spec(recipe__epochs=1)
    assert in_child(arguments(spec, runs, root)) == 0
    assert (runs / spec.id / "metrics.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]
    assert not ran(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> WorkflowCopy:
    """Table 5 with hostile labels, data roots and weight files, through the real rules and their shells."""
    copy = WorkflowCopy.make(tmp_path_factory.mktemp("workflow") / "copy")
    engine = copy.folder / "fbt_core" / "run.py"
    engine.write_text(engine.read_text() + ENGINE)
    root = json.dumps(str(copy.folder.parent / FOLDER), ensure_ascii=False)
    copy.replace("config/config.yaml", "cifar100: null", f"cifar100: {root}")
    for label in ("ViT Block", "Swin-T -> ResNet18"):
        copy.replace(
            "config/tables/table5.yaml", f"label: {label}", f"label: {json.dumps(LABEL, ensure_ascii=False)}"
        )
    done = copy.snakemake("--cores", "2", "results/smoke/tables/table5.md")
    assert done.returncode == 0, done.stdout
    return copy


def test_a_data_root_reaches_the_engine_as_it_is(built):
    runs = built.trained()
    assert runs
    for run in runs:
        argument = (built.folder / "results/smoke/runs" / run / "settings.json").read_text()
        settings = json.loads((built.folder / argument).read_text())
        assert settings["data_roots"] == {"cifar100": str(built.folder.parent / FOLDER)}


def test_labels_change_neither_a_run_nor_a_file_name(built):
    assert sorted(built.trained()) == sorted(plan(load()).needed(plan(load()).tables["table5"].runs))
    tables = built.folder / "results/smoke/tables"
    assert {path.name for path in tables.iterdir()} == {"table5.csv", "table5.md", "table5.tex"}
    text = (tables / "table5.md").read_text()
    assert "x" * 300 in text and "学生" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1


def test_nothing_was_run_and_nothing_lies_outside_the_results(built):
    assert not ran(built.folder.parent)
    assert {path.name for path in built.folder.parent.iterdir()} == {built.folder.name}
    assert {path.name for path in (built.folder / "results").iterdir()} == {"smoke"}


@pytest.mark.parametrize("kind", ["up", "spaces", "command", "newline", "long"])
def test_no_rule_makes_a_run_of_such_a_name(built, kind):
    done = built.snakemake("-n", f"results/smoke/runs/{HOSTILE[kind]}-0123456789/metrics.json")
    assert done.returncode != 0
    assert "MissingRuleException" in done.stdout or kind == "long"  # a run id's form, but no run of the plan
    assert not ran(built.folder.parent)
