"""Feature extraction on tiny untrained networks with hand-made run folders: arrays and what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fbt_core import checkpoint
from fbt_core.data.load import load_splits
from fbt_core.measure import features
from fbt_core.spec import ExecutionSettings, MethodSpec, NetworkSpec, RunSpec
from fbt_core.train import make_method, make_teacher
from fbt_core.weights import serialise
from fbt_paper.config.load import tiny_network
from tests.test_paper.made_up_results import make_spec

SETTINGS = ExecutionSettings(device="cpu", threads=1)
SETTINGS_JSON = SETTINGS.model_dump_json()


def method_parameters(name: str) -> dict:
    entries = yaml.safe_load(Path("config/methods.yaml").read_text())[name]["parameters"]
    return {key: entry.get("by_scale", {}).get("smoke", entry["value"]) for key, entry in entries.items()}


def spec_of(student: NetworkSpec, teacher: NetworkSpec | None = None, method: str = "scratch") -> RunSpec:
    revisions = {"revision": 1, "fusion_revision": 1 if method == "fbt" else None}
    return make_spec().model_copy(
        update={
            "student": student,
            "teacher": teacher,
            "method": MethodSpec(name=method, parameters=method_parameters(method), **revisions),
        }
    )


def write_untrained(runs: Path, spec: RunSpec) -> RunSpec:
    """A run's folder as the engine leaves it, but with initial weights that were only shaken a little."""
    folder = runs / spec.id
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    teacher = make_teacher(spec, SETTINGS, runs)
    method = make_method(spec, SETTINGS, runs, load_splits(spec.dataset, {})[0], teacher)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in method.trainable_module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    (folder / "weights.safetensors").write_bytes(serialise(method.student.network.state_dict()))
    checkpoint.save(folder, spec, {"trainable": method.trainable_module.state_dict()})
    return spec


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A CNN and a Swin alone, and FBT from Swin to CNN (fused model ends in the teacher) and back."""
    folder = tmp_path_factory.mktemp("runs")
    alone = {key: write_untrained(folder, spec_of(tiny_network(key))) for key in ("resnet18", "vit_s")}
    taught = {key: run.student.model_copy(update={"weights": f"run:{run.id}"}) for key, run in alone.items()}
    to_cnn = write_untrained(folder, spec_of(tiny_network("resnet18"), taught["vit_s"], "fbt"))
    to_vit = write_untrained(folder, spec_of(tiny_network("vit_s"), taught["resnet18"], "fbt"))
    specs = {**alone, "to_cnn": to_cnn, "to_vit": to_vit}
    return folder, {key: spec.id for key, spec in specs.items()}


@pytest.fixture(scope="module")
def stages(runs: tuple[Path, dict[str, str]]) -> dict[str, np.ndarray]:
    folder, ids = runs
    output = folder / "figure2.npz"
    networks = [argument for key in ("resnet18", "vit_s") for argument in ("--network", f"{key}={ids[key]}")]
    command = ["stages", "--runs", str(folder), *networks, "--show", "3", "0", "--measure", "96"]
    assert features.main([*command, "--settings", SETTINGS_JSON, "--output", str(output)]) == 0
    return dict(np.load(output))


def test_shapes_of_all_arrays(stages):
    assert stages["images"].shape == (2, 64, 64, 3) and stages["images"].dtype == np.uint8
    grids = {"resnet18": (16, 8, 4, 2), "vit_s": (4, 4, 4, 4)}
    for key, sides in grids.items():
        for stage, side in enumerate(sides, start=1):
            assert stages[f"{key}.stage{stage}"].shape == (2, side, side)
        assert stages[f"{key}.groups"].shape == (2, 3, sides[-1], sides[-1])
        assert stages[f"{key}.entropy"].shape == stages[f"{key}.locality"].shape == (4,)
        assert stages[f"{key}.stage_similarity"].shape == (4, 4)
        assert stages[f"{key}.group_similarity"].shape == ()
    assert stages["grids"].tolist() == [
        [4, 4],
        [4, 4],
        [4, 4],
        [2, 2],
    ]  # the coarser of the two, stage by stage


def test_images_are_enlarged_until_every_last_stage_has_enough_positions(runs):
    """Swin's and ViT's tables are interpolated; an MLP-Mixer is bound to its size and keeps it."""
    folder, ids = runs
    mixer = write_untrained(folder, spec_of(tiny_network("mixer_b16"))).id
    networks = {"resnet18": ids["resnet18"], "vit_s": ids["vit_s"], "mixer_b16": mixer}
    arrays = features.measure_stages(networks, folder, [0], 8, SETTINGS, positions=7)
    assert arrays["sizes"].tolist() == [224, 224, 64]
    assert arrays["resnet18.stage4"].shape == (1, 7, 7) and arrays["vit_s.stage4"].shape == (1, 14, 14)
    assert arrays["mixer_b16.stage4"].shape == (1, 4, 4)
    assert arrays["grids"].tolist() == [[4, 4]] * 4 and arrays["images"].shape == (1, 64, 64, 3)


def test_the_enlarged_network_has_the_weights_of_the_trained_one(runs):
    folder, ids = runs
    spec = features.read_spec(folder, ids["resnet18"])
    trained = features.load_trained(spec, folder, SETTINGS)
    larger = features.enlarge(trained, spec, 224)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(trained.network(image), larger.network(image))


def test_values_are_where_they_can_be(stages):
    for key in ("resnet18", "vit_s"):
        assert np.all((stages[f"{key}.entropy"] > 0) & (stages[f"{key}.entropy"] <= 1))
        assert np.allclose(np.diagonal(stages[f"{key}.stage_similarity"]), 1.0, atol=1e-6)
        assert all(np.ptp(stages[f"{key}.stage{stage}"]) > 0 for stage in (1, 2, 3, 4))
        assert -1 <= stages[f"{key}.group_similarity"] <= 1


def test_shown_images_are_the_ones_asked_for(runs, stages):
    spec = features.read_spec(runs[0], runs[1]["resnet18"])
    split = load_splits(spec.dataset, {})[1]
    pictures = [shown_picture(split, number, stages["images"].shape[1]) for number in (3, 0, 1)]
    assert np.array_equal(stages["images"][0], pictures[0])
    assert np.array_equal(stages["images"][1], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def shown_picture(split, number: int, side: int) -> np.ndarray:
    """A test image as the engine resizes it, once more with a batch of its own."""
    spec = make_spec()
    (raw, _), *_ = features.load_images(spec, split, [number], torch.device("cpu"))
    assert raw.shape[-1] == side
    return raw[0].expand(3, -1, -1).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("run", ["to_cnn", "to_vit"])
def test_similarity_before_and_after_in_both_directions(runs, run):
    folder, ids = runs
    output = folder / f"{run}.npz"
    command = ["similarity", "--runs", str(folder), "--run", ids[run], "--measure", "128"]
    assert features.main([*command, "--settings", SETTINGS_JSON, "--output", str(output)]) == 0
    arrays = dict(np.load(output))
    shapes = {"teacher.student": (4, 4), "teacher.fused": (4, 5), "fused.student": (5, 4)}
    assert {name: arrays[name].shape for name in arrays} == {
        f"{when}.{pair}": shape for when in ("before", "after") for pair, shape in shapes.items()
    }
    assert all(np.isfinite(value).all() and value.max() < 1.001 for value in arrays.values())
    early = ("fused.student", "teacher.fused") if run == "to_cnn" else ("teacher.fused", "fused.student")
    for when in ("before", "after"):  # S1-S3 of the fused model are those of the network it begins with
        assert np.allclose(np.diagonal(arrays[f"{when}.{early[0]}"])[:3], 1.0, atol=1e-6)
    assert not np.allclose(arrays["before.teacher.student"], arrays["after.teacher.student"])


def test_before_are_the_initial_weights_of_the_same_seed(runs):
    folder, ids = runs
    first, second = (features.measure_similarity(folder, ids["to_cnn"], 64, SETTINGS) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_run_without_a_teacher_is_a_users_error(runs, capsys):
    folder, ids = runs
    command = [
        "similarity",
        "--runs",
        str(folder),
        "--run",
        ids["resnet18"],
        "--output",
        str(folder / "x.npz"),
    ]
    assert features.main([*command, "--settings", SETTINGS_JSON]) == 1
    assert capsys.readouterr().err == f"error: {ids['resnet18']}: has no teacher to compare with\n"
    assert not (folder / "x.npz").exists()


def test_a_lost_checkpoint_is_named(runs, capsys, tmp_path):
    folder, ids = runs
    alone = tmp_path / "runs"
    for key in ("vit_s", "to_cnn"):
        (alone / ids[key]).mkdir(parents=True)
        for name in ("spec.json", "weights.safetensors"):
            (alone / ids[key] / name).write_bytes((folder / ids[key] / name).read_bytes())
    command = [
        "similarity",
        "--runs",
        str(alone),
        "--run",
        ids["to_cnn"],
        "--output",
        str(tmp_path / "x.npz"),
    ]
    assert features.main([*command, "--settings", SETTINGS_JSON]) == 1
    assert "no checkpoint is left of this run" in capsys.readouterr().err


def test_unknown_run_is_named(tmp_path, capsys):
    command = ["stages", "--runs", str(tmp_path), "--network", "a=nothing", "--show", "0"]
    assert features.main([*command, "--output", str(tmp_path / "x.npz")]) == 1
    assert "there is no such run; train it first" in capsys.readouterr().err


def test_spread_takes_images_from_the_whole_split():
    assert features.spread(4, 100) == [0, 25, 50, 75]
    assert features.spread(9, 5) == [0, 1, 2, 3, 4]


def test_settings_are_plain_json():
    assert json.loads(SETTINGS_JSON)["device"] == "cpu"


def test_a_wrong_setting_is_one_line(tmp_path, capsys):
    command = ["similarity", "--runs", str(tmp_path), "--run", "x", "--output", str(tmp_path / "x.npz")]
    assert features.main([*command, "--settings", '{"threads": "two"}']) == 1
    assert capsys.readouterr().err.startswith("error: --settings.threads: Input should be a valid integer")
