"""A trained student is given away: timm alone loads it and gives the same logits."""

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from fbt_core.errors import UserError
from fbt_core.export import build_student, export, load_exported
from fbt_core.spec import RunSpec
from fbt_paper.config.load import load
from fbt_paper.plan.runs import plan
from tests.test_core.engine_runs import make_spec
from tests.test_paper.config_copy import ARCHITECTURES

LOAD = """
import sys, timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
assert "fbt_core" not in sys.modules
images = torch.load(sys.argv[2])
torch.save(model(images).detach(), sys.argv[3])
from timm.data import resolve_data_config
print(resolve_data_config({}, model=model))
"""


def finish(spec: RunSpec, folder):
    """A run's folder as the engine leaves it, with random weights; returns the network."""
    torch.manual_seed(0)
    network = build_student(spec).eval()
    folder.mkdir(parents=True)
    safetensors.torch.save_file(network.state_dict(), folder / "weights.safetensors")
    score = {"epoch": 3, "top1": 80.0, "top5": 95.0}
    provenance = {"git_sha": "c0ffee"}
    metrics = {"run": spec.id, "spec": spec.model_dump(mode="json"), "best": score, "last": score}
    (folder / "metrics.json").write_text(json.dumps({**metrics, "provenance": provenance}))
    return network


def student_spec(architecture, scale):
    """The from-scratch run of an architecture at a scale, or a run like it."""
    planned = plan(load(overrides={"scale": scale}))
    runs = planned.runs.values()
    students = [
        run for run in runs if run.student.architecture == architecture and run.method.name != "simkd"
    ]
    if students:
        return students[0]
    teacher = next(run.teacher for run in runs if run.teacher and run.teacher.architecture == architecture)
    return next(iter(runs)).model_copy(update={"student": teacher.model_copy(update={"weights": "none"})})


def compare(spec, tmp_path, script=LOAD):
    """Export a run, load it in a process of its alone, and compare the logits."""
    network = finish(spec, tmp_path / "runs" / spec.id)
    export(tmp_path / "runs" / spec.id, tmp_path / "out", licence="MIT")
    size = spec.dataset.image_size
    images = torch.randn(2, 3, size, size)
    torch.save(images, tmp_path / "images.pt")
    command = [sys.executable, "-c", script, str(tmp_path / "out"), "images.pt", "logits.pt"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), network(images), rtol=0, atol=1e-5)
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_timm_alone_loads_every_network_of_the_grid(architecture, tmp_path):
    spec = student_spec(architecture, "paper")
    shown = compare(spec, tmp_path)
    assert f"3, {spec.dataset.image_size}, {spec.dataset.image_size}" in shown


def test_timm_alone_loads_a_swin_of_another_size(tmp_path):
    spec = student_spec("swin_p", "smoke")
    shown = compare(spec, tmp_path)
    assert "3, 64, 64" in shown
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Run: `{spec.id}`, code at git c0ffee" in card
    assert "timm.create_model" in card and "80.00 % ± 0.57" in card and "Licence of the data: MIT" in card


def test_a_network_without_a_timm_name_has_a_loader_of_ours_and_says_so(tmp_path):
    spec = student_spec("mobilenetv2", "smoke")
    network = finish(spec, tmp_path / spec.id)
    export(tmp_path / spec.id, tmp_path / "out")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            load_exported(tmp_path / "out")(images), network(images), rtol=0, atol=1e-5
        )
    assert "from fbt_core.export import load_exported" in (tmp_path / "out" / "README.md").read_text()


def test_what_cannot_be_given_away_is_refused(tmp_path):
    with pytest.raises(UserError, match="not finished: it has no metrics.json; `fbt status --runs`"):
        export(tmp_path / "no-run", tmp_path / "out")
    spec = make_spec()
    finish(spec, tmp_path / spec.id)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="the folder is not empty; name a new one with --to"):
        export(tmp_path / spec.id, tmp_path / "full")
    metrics = json.loads((tmp_path / spec.id / "metrics.json").read_text())
    metrics["spec"]["method"]["name"] = "simkd"
    (tmp_path / spec.id / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(
        UserError, match="SimKD's weights are the student without a trained classifier; its score is that"
    ):
        export(tmp_path / spec.id, tmp_path / "out")
    assert not (tmp_path / "out").exists()
