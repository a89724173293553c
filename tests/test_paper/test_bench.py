"""`fbt bench`: what is measured, where it is noted, and what the plan makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fbt_core.errors import UserError
from fbt_paper.cli import main
from fbt_paper.plan.speeds import BENCH_FILE, assumed_speeds, speeds_for, with_measured
from fbt_paper.plan.targets import Flow
from fbt_paper.status import bench


@pytest.fixture(scope="module")
def smoke() -> Flow:
    return Flow({"scale": "smoke"})


def test_measured_speeds_take_the_places_of_assumed_ones(tmp_path):
    assumed = assumed_speeds("a100", 8)
    step = {"device": "cuda", "precision": "float16", "tflops": 50.0}
    steps = {"a": step, "b": {**step, "tflops": 60.0}, "c": {**step, "device": "cpu", "tflops": 0.1}}
    content = {"machine": "m", "gpu": "A100", "steps": steps, "loader": {"small/plain": 99.0}}
    speeds = with_measured(assumed, content)
    assert speeds.tflops == {**assumed.tflops, "float16": (50.0, 60.0)}
    assert speeds.loader == {**assumed.loader, "small/plain": 99.0}
    assert "float16 measured on A100" in speeds.describe()
    only_cpu = with_measured(assumed, {**content, "steps": {"c": steps["c"]}})
    assert only_cpu.tflops == assumed.tflops
    (tmp_path / BENCH_FILE).write_text(json.dumps(content))
    assert speeds_for(tmp_path, "a100", 8, None) == speeds
    assert speeds_for(tmp_path, "a100", 8, 40.0).tflops["float16"] == (40.0, 40.0)


def test_a_pair_or_method_that_is_not_planned_is_refused_with_those_that_are(smoke):
    with pytest.raises(UserError, match="no run of scale smoke has pair 'swin_t__resnet81'") as error:
        bench.choose_run(smoke, "swin_t__resnet81", "fbt", None)
    assert "did you mean 'swin_t__resnet18'" in str(error.value)
    with pytest.raises(UserError, match="method 'fbd'"):
        bench.choose_run(smoke, "swin_t__resnet18", "fbd", None)


@pytest.mark.slow
def test_the_bench_is_measured_and_noted(smoke, tmp_path, monkeypatch, capsys):
    """The whole way once: a step and the loaders of a tiny run, in the process that has torch."""
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "--seconds", "0.1", "--batch", "4"]) == 0
    printed = capsys.readouterr().out
    assert "a step of 4 images" in printed and "images of the data set" in printed
    content = json.loads(Path("results/smoke", BENCH_FILE).read_text())
    (name,), (entry,) = content["steps"], content["steps"].values()
    assert name == "swin_t__resnet18/fbt/fashion_mnist/float32"
    assert entry["images_per_second"] == pytest.approx(4 / entry["step_seconds"])
    assert content["loader"]["small/plain"] > 100
    assert main(["bench", "--seconds", "0.1", "--batch", "4", "--precision", "bfloat16"]) == 0
    assert len(json.loads(Path("results/smoke", BENCH_FILE).read_text())["steps"]) == 2
