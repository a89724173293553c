"""`from fbt_core import distil`: any two networks, any method, a loader of one's own, the product's loop."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fbt_core
from fbt_core import Parts, UserError, call, chain, distil, each, method_names, stage, unchanged
from fbt_core.data.load import load_splits
from fbt_core.data.order import seed_everything
from fbt_core.distributed import Group
from fbt_core.methods.facts import method_facts
from fbt_core.own_data import _method_spec, _recipe, family_of
from fbt_core.run import main
from fbt_core.spec import ExecutionSettings
from fbt_core.staged import build_network
from fbt_core.stream import Stream
from fbt_core.train import BUILD
from tests.test_core.engine_runs import CLASSES, arguments, make_spec, measured, weights_of, write_images

SETTINGS = ExecutionSettings(threads=1, device="cpu")
SHORT = {"epochs": 1, "recipe": {"schedule": {"warmup_epochs": 0}, "ema_decay": None}}


def loaders(numbered=False, count=24, size=32, batch=8):
    """Random images of four classes; with `numbered` each with its number."""
    torch.manual_seed(0)
    images, labels = torch.randn(count, 3, size, size), torch.arange(count) % CLASSES
    extra = (torch.arange(count),) if numbered else ()
    train = DataLoader(TensorDataset(images, labels, *extra), batch_size=batch, shuffle=True)
    return train, DataLoader(TensorDataset(images, labels), batch_size=batch)


class Mine(nn.Module):
    """A network that timm does not know."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        blocks = [
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(4)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(8, classes)

    def classify(self, x):
        return self.fc(x.mean((2, 3)))

    def forward(self, x):
        return self.classify(self.blocks(self.stem(x)))


def mine():
    torch.manual_seed(1)
    network = Mine()
    parts = Parts(chain("stem"), each(network, "blocks"), norm=unchanged, head=call("classify"))
    return stage(network, 32, parts=parts)


def small(name="test_vit", **options):
    torch.manual_seed(2)
    import timm

    return timm.create_model(name, num_classes=CLASSES, **options)


class ProductLoader:
    """The product's batches of a spec, epoch after epoch, as a loader of the caller's."""

    def __init__(self, stream):
        self.stream, self.epoch = stream, 0
        self.batch_size, self.drop_last = stream.spec.recipe.batch_size, True
        self.dataset = self.sampler = range(stream.spec.dataset.train_images)

    def __len__(self):
        return self.stream.order.steps

    def __iter__(self):
        epoch, self.epoch = self.epoch, self.epoch + 1
        for key, raw in self.stream.training(epoch, 0):
            (part,) = self.stream.parts(key, raw)
            yield part.images, part.target, part.indices


class ProductTestLoader(ProductLoader):
    def __init__(self, stream):
        super().__init__(stream)
        self.dataset = range(stream.spec.dataset.test_images)

    def __len__(self):
        return self.stream.tests.rounds

    def __iter__(self):
        return iter(self.stream.tests)


def test_the_same_batches_end_with_the_bytes_of_the_product_s_own_run(tmp_path):
    """So there is no second loop: what differs is where the batches come from."""
    root, spec = write_images(tmp_path / "data"), make_spec()
    assert main(arguments(spec, tmp_path / "runs", root)) == 0
    splits = load_splits(spec.dataset, {"squares": str(root)})
    stream = Stream(spec, SETTINGS, splits, Group(torch.device("cpu"), 0, 1))
    seed_everything(spec.seed, BUILD, 0)
    student = build_network(spec.student, CLASSES, 32)
    recipe = spec.recipe.model_dump(mode="json", exclude={"augmentation", "batch_size"})
    result = distil(student, None, ProductLoader(stream), ProductTestLoader(stream), method="scratch",
                    classes=CLASSES, recipe=recipe, seed=spec.seed, settings=SETTINGS,
                    folder=tmp_path / "mine")  # fmt: skip
    assert (tmp_path / "mine" / "weights.safetensors").read_bytes() == weights_of(tmp_path / "runs", spec)
    names = ("epoch", "lr", "loss", "terms", "top1", "top5", "top1_ema", "test_loss")
    history = [tuple(line[name] for name in names) for line in result.history]
    assert history == measured(tmp_path / "runs", spec)
    assert result.metrics["run"] is None


def test_three_lines_with_two_timm_networks():
    train, test = loaders()
    result = distil(
        "test_resnet", small(img_size=32), train, test, classes=CLASSES, settings=SETTINGS, **SHORT
    )
    assert 0 <= result.top1 <= 100 and set(result.history[0]["terms"]) >= {"labels"}
    assert result.network(torch.randn(2, 3, 32, 32)).shape == (2, CLASSES)
    assert result.metrics["spec"]["method"]["parameters"] == {
        name: fact.value_for("cifar100", ()) for name, fact in method_facts("fbt").parameters.items()
        if fact.before is None or fact.value_for("cifar100", ()) != fact.before
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", method_names())
def test_every_method_trains_on_a_loader(method):
    train, test = loaders(numbered=True, size=64)
    teacher = None if method == "scratch" else small(img_size=64)
    parameters = {"crd": {"negatives": 2}, "ldrld": {"selected": 3}}.get(method)
    result = distil("test_resnet", teacher, train, test, method=method, classes=CLASSES,
                    parameters=parameters, settings=SETTINGS, **SHORT)  # fmt: skip
    assert len(result.history) == 1


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_of_one_s_own_in_either_role(role):
    train, test = loaders()
    pair = {"student": "test_resnet", "teacher": small("test_resnet"), role: mine()}
    result = distil(pair["student"], pair["teacher"], train, test, method="kd", classes=CLASSES,
                    settings=SETTINGS, **SHORT)  # fmt: skip
    assert isinstance(result.network, Mine) is (role == "student")


def test_it_goes_on_at_the_last_epoch_s_end(tmp_path):
    """Cut within the second epoch, the training ends with the bytes of one that was not cut."""

    class Cut(Exception):  # noqa: N818
        pass

    class Breaking(TensorDataset):
        left = 10**9

        def __getitem__(self, index):
            self.left -= 1
            if self.left < 0:
                raise Cut
            return super().__getitem__(index)

    whole, test = loaders()
    breaking = Breaking(*whole.dataset.tensors)
    cut = DataLoader(breaking, batch_size=8, shuffle=True)
    settings = {"classes": CLASSES, "method": "scratch", "settings": SETTINGS,
                "recipe": SHORT["recipe"], "epochs": 3}  # fmt: skip

    def train(loader, name):
        return distil(small("test_resnet"), None, loader, test, folder=tmp_path / name, **settings)

    reference = train(whole, "whole")
    breaking.left = 24 + 10
    with pytest.raises(Cut):
        train(cut, "cut")
    breaking.left = 10**9
    resumed = train(cut, "cut")
    assert "resumed at epoch 2, step 0" in (tmp_path / "cut" / "log.txt").read_text()
    assert resumed.top1 == reference.top1
    for name in ("whole", "cut"):
        assert (tmp_path / name / "weights.safetensors").exists()
    first, second = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "cut"))
    assert first == second
    assert train(whole, "whole").metrics == reference.metrics  # finished: read, not trained again
    with pytest.raises(UserError, match="holds another training"):
        distil(
            small("test_resnet"), None, whole, test, folder=tmp_path / "whole", **{**settings, "epochs": 4}
        )


REFUSED = {
    "no classes": ({"classes": None}, "classes: the train loader's dataset lists none; state classes="),
    "unknown method": ({"method": "fbtt"}, "there is no method 'fbtt'.*did you mean 'fbt'"),
    "unknown parameter": ({"parameters": {"temperatures": 2.0}}, "unknown parameter of kd.*'temperature'"),
    "wrong parameter": (
        {"parameters": {"temperature": "hot"}},
        "parameters of method 'kd': temperature: must be a number",
    ),
    "unknown recipe": ({"like": "cifar"}, "there are no recipes for 'cifar'.*did you mean 'cifar100'"),
    "too long a warm-up": ({"recipe": {}, "epochs": 1}, "warmup_epochs, 3, is more than epochs, 1"),
    "unknown key": ({"recipe": {"epoch": 3}}, "recipe: epoch: Extra inputs"),
    "another number of classes": ({"classes": 7}, "distil: teacher: has 4 classes, the data 7"),
    "no teacher": ({"teacher": None}, "method 'kd' needs a teacher"),
    "a method that remembers images": ({"method": "crd"}, "needs its number; let the dataset give"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_said_in_one_line(case):
    changes, message = REFUSED[case]
    train, test = loaders()
    settings = {"teacher": small("test_resnet"), "method": "kd", "classes": CLASSES, **SHORT, **changes}
    with pytest.raises(UserError, match=message):
        distil("test_resnet", settings.pop("teacher"), train, test, settings=SETTINGS, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda train, test: (train, DataLoader(test.dataset, batch_size=8, shuffle=True)),
            "shuffles the test",
        ),
        (lambda train, test: (DataLoader(train.dataset, batch_size=None), test), "has no batch_size"),
        (lambda train, test: (DataLoader(train.dataset, batch_size=48), test), "has no whole batch of 48"),
        (lambda train, test: (train, [1, 2]), "test loader: does not say how many batches and images"),
        (
            lambda train, test: (train, DataLoader([torch.zeros(3, 8, 8)] * 3)),
            r"must give \(images, labels\)",
        ),
        (lambda train, test: (train, DataLoader([(torch.zeros(3, 8, 9), 1)] * 3)), r"not \(B, 3, S, S\)"),
        (lambda train, test: (train, DataLoader([(torch.zeros(3, 8, 8).byte(), 1)] * 3)), "not floats"),
    ],
)
def test_a_loader_that_does_not_fit_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        distil("test_resnet", None, *change(*loaders()), method="scratch", classes=CLASSES, settings=SETTINGS)


@pytest.mark.parametrize(
    ("name", "family"), [("test_resnet", "cnn"), ("test_vit", "msa"), ("mixer_s32_224", "mlp"),
                         ("resmlp_12_224", "mlp"), ("swin_tiny_patch4_window7_224", "msa"),
                         ("efficientnet_b0", "cnn")]
)  # fmt: skip
def test_the_family_follows_from_the_blocks(name, family):
    import timm

    size = 224 if "224" in name else 64 if "test" not in name else 160
    assert family_of(stage(timm.create_model(name), size)) == family


def test_what_is_not_stated_is_what_the_configuration_states():
    assert _recipe("cifar100", "cnn", None, 64, {}).optimizer.learning_rate == 0.1
    assert (
        _recipe("cifar100", "cnn", None, 64, {"optimizer": {"learning_rate": 0.01}}).optimizer.momentum == 0.9
    )
    assert _method_spec("kd", "cifar100", {"temperature": 2}).parameters["temperature"] == 2.0


def test_importing_the_package_imports_no_torch_and_every_public_name_is_there():
    script = "import sys, fbt_core; assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert sorted(fbt_core.HOMES) == sorted(fbt_core.__all__)
    for name in fbt_core.__all__:
        assert getattr(fbt_core, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'destil'"):
        _ = fbt_core.destil


def test_the_document_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (Path(fbt_core.__file__).parents[1] / "docs/python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) == 3
    names = {"__name__": "document"}
    for block in blocks:
        exec(block, names)
    assert re.fullmatch(r"\d+\.\d %", capsys.readouterr().out.strip())
    assert (tmp_path / "my-student" / "metrics.json").exists()
    for name in fbt_core.__all__:
        assert f"`{name}`" in text, name
