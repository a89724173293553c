"""The measuring commands say what they do."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("fbt_core.measure.cost", ["by the paper's rule and truly", "--out", "table6", "networks"]),
        ("fbt_core.measure.training_cost", ["forward, backward and all extras", "--out"]),
        (
            "fbt_core.measure.features",
            ["how alike teacher, fused model and student are", "{stages,similarity}"],
        ),
        ("fbt_core.measure.survey", ["which networks can be cut exactly", "--write", "regnet"]),
        ("fbt_core.weights", ["fetch", "convert", "sha256", "model_best.pth.tar"]),
    ],
)
def test_help_says_what_the_command_does(module, words):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
    )
    assert f"usage: python -m {module}" in done.stdout
    assert [word for word in words if word not in done.stdout] == []
