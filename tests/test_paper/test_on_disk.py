"""Runs that read other weights than their teacher or earlier phase has now are named where they are shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fbt_paper.page.build import write_page
from fbt_paper.plan.on_disk import describe_outdated
from fbt_paper.plan.targets import Flow
from fbt_paper.tables import compare
from fbt_paper.tables.results import collect_tables
from tests.test_paper.config_copy import ConfigCopy
from tests.test_paper.made_up_results import write_scale

WARNING = "was trained again and has other weights now than those that"


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """Made-up results of a study of Tables 3 and 5 alone, which takes a second to show."""
    copy = ConfigCopy(tmp_path)
    for path in [*copy.folder.glob("tables/*"), *copy.folder.glob("figures/*")]:
        if path.name not in ("table3.yaml", "table5.yaml"):
            path.unlink()
    copy.write("claims.yaml", "claims: []\n")
    flow = Flow({}, copy.folder)
    flow.results = str(tmp_path / "results")
    flow.runs = f"{flow.results}/runs"
    write_scale(flow)
    return flow


def note(flow: Flow, run: str, **digests: str) -> None:
    """Write these digests into a run's metrics."""
    path = Path(flow.runs, run, "metrics.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | digests))


def student_and_teacher(flow: Flow) -> tuple[str, str]:
    (student,) = flow.plan.tables["table5"].cells["vit_block", "vit_s__resnet18"].runs
    (teacher,) = flow.plan.runs[student].needed_runs()
    return student, teacher


def test_comparison_and_page_name_an_outdated_teacher_at_the_tables_of_its_students(flow):
    student, teacher = student_and_teacher(flow)
    note(flow, student, teacher_weights_sha256="cd" * 32)
    warning = f"{teacher} {WARNING} {student} read"

    tables = collect_tables(flow, flow.plan.all_tables)
    compared = compare.to_markdown(tables, "").replace("\\_", "_")
    assert compared.count(warning) == 1
    assert compared.rindex("\n## ", 0, compared.index(warning)) == compared.index("\n## Table 5")

    sections = write_page(flow, "index", []).read_text(encoding="utf-8").split("<section id=")
    assert [text.split('"')[1] for text in sections if warning in text] == ["table5"]

    note(flow, student, teacher_weights_sha256="ab" * 32)  # what made-up runs state of their own weights
    assert WARNING not in compare.to_markdown(collect_tables(flow, ["table5"]), "")
    assert WARNING not in write_page(flow, "index", []).read_text(encoding="utf-8")


def test_a_second_phase_that_began_with_other_weights_is_named_as_well(flow):
    (second,) = flow.plan.tables["table3"].cells["e", "top1"].runs
    first = flow.plan.runs[second].student.weights.removeprefix("run:")
    note(flow, second, initial_weights_sha256="cd" * 32)
    (said,) = describe_outdated(flow.plan, [second], Path(flow.runs))
    assert said.startswith(f"{first} {WARNING} {second} read")
    assert flow.standing([f"{flow.runs}/{second}/metrics.json"])

    note(flow, second, initial_weights_sha256="ab" * 32)
    assert describe_outdated(flow.plan, [second], Path(flow.runs)) == []
    assert not flow.standing([f"{flow.runs}/{second}/metrics.json"])


def test_the_page_is_made_without_a_teacher_that_nobody_awaits(flow):
    """Deleted after all its students had finished: it is no input of the page, nor shown on it."""
    _, teacher = student_and_teacher(flow)
    assert teacher in write_page(flow, "index", []).read_text(encoding="utf-8").split('id="data"')[1]
    shutil.rmtree(Path(flow.runs, teacher))
    needed = flow.results_of(flow.plan.all_tables, needed=True)
    assert f"{flow.runs}/{teacher}/metrics.json" not in needed
    page = write_page(flow, "index", []).read_text(encoding="utf-8")
    runs = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])[
        "runs"
    ]
    assert teacher not in runs and student_and_teacher(flow)[0] in runs
