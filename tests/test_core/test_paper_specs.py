"""The paper's own specs are run, not only planned: full-size networks, 224 px, one forward and backward.

FBT on all 29 pairs, every method on one pair of each family direction, and every variant of the other tables.
No pre-trained weights are read; each spec is built as the engine builds it.
Gradients have to be exactly where the method says.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from fbt_core import train
from fbt_core.methods.base import Batch
from fbt_core.methods.registry import method_names
from fbt_core.spec import ExecutionSettings
from fbt_core.teacher import Teacher
from fbt_paper.config.load import load
from fbt_paper.plan.runs import plan

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[2] / "config"
GRIDS = ("cifar100", "imagenet", "homogeneous")
COLUMNS = {
    (table, column["key"])
    for table in GRIDS
    for column in yaml.safe_load((CONFIG / "tables" / f"{table}.yaml").read_text())["columns"]
}
ROWS = {
    (table, row["key"]): row
    for table in GRIDS
    for row in yaml.safe_load((CONFIG / "tables" / f"{table}.yaml").read_text())["rows"]
}
METHODS = [name for name in method_names() if all((table, name) in COLUMNS for table in GRIDS)]
"""The methods that every grid has; one that was added need not be in all of them."""
DIRECTIONS = {
    ("msa", "cnn"): ("cifar100", "swin_t__resnet18"),
    ("mlp", "cnn"): ("cifar100", "mixer_b16__mobilenetv2"),
    ("cnn", "cnn"): ("homogeneous", "resnet34__resnet18"),
    ("cnn", "msa"): ("cifar100", "convnext_t__deit_t"),
    ("mlp", "msa"): ("cifar100", "mixer_b16__swin_p"),
    ("cnn", "mlp"): ("cifar100", "convnext_t__resmlp_s12"),
    ("msa", "mlp"): ("cifar100", "swin_t__resmlp_s12"),
}
"""One pair for each direction (teacher's family, student's family) the paper has."""
PARTS = ("stem", 0, 1, 2, 3, "head")
BATCH = 2
MEMORY_LIMIT_GB = 6


# --- memory


@pytest.fixture(autouse=True)
def within_memory() -> Iterator[None]:
    """Each test here stays below the limit, in whichever process it runs; one that does not fails by name."""
    reset_peak()
    yield
    assert peak_gigabytes() < MEMORY_LIMIT_GB


def reset_peak() -> None:
    """Start measuring this process's peak of memory anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_gigabytes() -> float:
    """The most memory this process has held since then."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


# --- building


@pytest.fixture(scope="module")
def planned():
    """The plan at scale paper."""
    return plan(load(CONFIG, {"scale": "paper"}))


def spec_of(planned, table, row, column):
    """The spec behind one cell of a table."""
    return planned.runs[planned.tables[table].cells[row, column].runs[0]]


@pytest.fixture(scope="module")
def shelf():
    """The networks of the pair in work, so that a pair's methods need not build them again."""
    return {}


@pytest.fixture
def build(shelf, monkeypatch):
    """Builds a spec's method as the engine does, but for the weights, and with networks from the shelf."""
    build_anew = train.make_network

    def make_network(network, spec, settings, runs, in_training=False):
        split = str(spec.method.parameters.get("split", "even"))
        key = (network.architecture, spec.dataset.classes, split, in_training)
        if key not in shelf:
            if len(shelf) >= 3:
                shelf.pop(next(iter(shelf)))
            shelf[key] = with_weights_in_the_head(build_anew(network, spec, settings, runs))
        return copy.deepcopy(shelf[key]) if in_training else shelf[key]

    monkeypatch.setattr(train, "load_weights", lambda *inputs, **options: None)
    monkeypatch.setattr(train, "make_network", make_network)

    def build_method(spec):
        labels = torch.arange(spec.dataset.train_images) % spec.dataset.classes
        settings, runs = ExecutionSettings(), Path("nowhere")
        teacher = train.make_teacher(spec, settings, runs)
        method = train.make_method(spec, settings, runs, SimpleNamespace(labels=labels), teacher)
        method.train()
        method.start_epoch(0)
        return method

    return build_method


def with_weights_in_the_head(network):
    """timm starts Mixer's and ResMLP's classifiers at zero, which would keep every gradient at the head."""
    with torch.no_grad():
        for parameter in network.stage_parameters("head"):
            if parameter.dim() == 2 and not parameter.any():
                parameter.normal_(std=0.02)
    return network


def make_batch(spec):
    """Two images, with soft labels where the recipe mixes images."""
    generator = torch.Generator().manual_seed(7)
    size, classes = spec.dataset.image_size, spec.dataset.classes
    images = torch.randn(BATCH, 3, size, size, generator=generator)
    target = torch.tensor([3, 11])
    if spec.recipe.augmentation.mixup:
        one_hot = torch.nn.functional.one_hot(target, classes).float()
        target = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    return Batch(images, target, torch.tensor([0, 5]))


# --- what has to hold for every method


def state_of(module):
    """Where every parameter and buffer is at: its version counts each change, even one that is undone."""
    return {name: tensor._version for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def named_gradients(module):
    return {name: p.grad for name, p in module.named_parameters() if p.requires_grad}


def reached_parts(student, gradient_of):
    """The parts of the student (stem, stages 0..3, head) that some gradient reaches."""
    return {
        part
        for part in PARTS
        if any((g := gradient_of(p)) is not None and bool(g.any()) for p in student.stage_parameters(part))
    }


def is_taught(method):
    """Whether anything teaches FBT's fused model: the teacher, or the labels where its head is trainable."""
    by_labels = method.extras["fused"].head_is_trainable and method.settings.fused_cross_entropy > 0
    return method.settings.teacher_to_fused or by_labels


def without_gradient(name, method):
    """Names of the trainable parameters that the coming step does not use (FCFD's draw is fixed here)."""
    unused = set()
    if name == "simkd":  # the teacher's classifier is read instead of the student's
        unused = {id(p) for p in method.student.stage_parameters("head")}
    if name == "fcfd":  # bridges into the student's stages serve drawn paths only
        drawn = method._draw_paths()
        method._draw_paths = lambda: drawn
        idle = {f"teacher_to_student{i}" for i in (1, 2, 3)} - {path.bridge for path in drawn}
        unused = {id(p) for bridge in idle for p in method.extras[bridge].parameters()}
    if name == "fbt" and "fused" in method.extras and not is_taught(method):
        unused = {id(p) for p in method.extras["fused"].parameters()}
    return {n for n, p in method.trainable_module.named_parameters() if id(p) in unused}


def check_step(spec, method):
    """One forward and backward: finite, the teacher as it was, gradients just where they belong."""
    name = spec.method.name
    teacher_before = state_of(method.teacher) if method.teacher is not None else {}
    unused = without_gradient(name, method)
    result = run_step(spec, method, make_batch(spec))
    loss = result["loss"]
    assert torch.isfinite(loss)
    assert torch.isfinite(result["output"]).all()
    assert result["output"].shape == (BATCH, spec.dataset.classes)
    torch.testing.assert_close(torch.stack(list(result["terms"].values())).sum(), loss.detach())
    loss.backward()
    gradients = named_gradients(method.trainable_module)
    assert all(torch.isfinite(g).all() for g in gradients.values() if g is not None)
    assert {n for n, g in gradients.items() if g is None} == unused
    assert reached_parts(method.student, lambda p: p.grad) == set(PARTS) - (
        {"head"} if name == "simkd" else set()
    )
    if method.teacher is not None:
        assert state_of(method.teacher) == teacher_before
        assert not any(p.requires_grad or p.grad is not None for p in method.teacher.parameters())
        assert not method.teacher.training


def observe(spec, method, batch):
    """What the teacher gives for the batch, normalised as the recipe says."""
    teacher = Teacher.of(spec, method.teacher)
    return teacher.observe(batch.images) if teacher else None


def run_step(spec, method, batch):
    return method(batch, observe(spec, method, batch))


# --- the checks


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("direction", DIRECTIONS, ids="_to_".join)
def test_each_method_steps_in_each_family_direction(planned, build, direction, name):
    spec = spec_of(planned, *DIRECTIONS[direction], name)
    assert spec.method.name == name
    assert spec.student.family == direction[1]
    assert spec.teacher is None or spec.teacher.family == direction[0]
    check_step(spec, build(spec))


@pytest.mark.parametrize("pair", ROWS, ids=":".join)
def test_fbt_steps_on_every_pair_and_its_fused_terms_reach_what_the_paper_says(planned, build, pair):
    spec = spec_of(planned, *pair, "fbt")
    method = build(spec)
    check_step(spec, method)
    check_fused_gradients(spec, method)


def check_fused_gradients(spec, method):
    """The terms that teach the fused model, alone: through L2G, and to one side of it."""
    batch, fused = make_batch(spec), method.extras["fused"]
    terms = method.terms(method.student.features(batch.images), observe(spec, method, batch), batch)
    taught = sum(
        term for name, term in terms.items() if name.startswith(("teacher_to_fused", "fused_labels"))
    )
    parameters = [p for p in method.trainable_module.parameters() if p.requires_grad]
    gradients = dict(zip(parameters, torch.autograd.grad(taught, parameters, allow_unused=True), strict=True))
    reached = reached_parts(method.student, gradients.get)
    assert all(gradients[p] is not None and gradients[p].any() for p in fused.l2g.parameters())
    if (spec.teacher.family, spec.student.family) in {("cnn", "msa"), ("cnn", "mlp")}:
        own_token = {"stem", 0, 1, 2} if method.student.shapes[2].prefix_tokens else set()
        assert reached == {3, "head"} | own_token
        assert "fused_labels" in terms
    else:
        assert reached == {"stem", 0, 1, 2}
        assert "fused_labels" not in terms


@pytest.mark.parametrize("table", ["table2", "table3", "table4", "table5", "ablation"])
def test_every_run_of_the_other_tables_steps(planned, build, table):
    """Each switch of the ablation, both kinds of block, FitNet's four forms, the phases of the chains."""
    needed = [planned.runs[key] for key in planned.needed(planned.tables[table].runs)]
    distilling = [spec for spec in needed if spec.teacher]
    assert distilling
    for spec in distilling:
        check_step(spec, build(spec))


def test_the_directions_are_all_that_the_tables_have():
    families = {
        name: entry["family"]
        for name, entry in yaml.safe_load((CONFIG / "architectures.yaml").read_text()).items()
    }
    directions = {(families[row["teacher"]], families[row["student"]]) for row in ROWS.values()}
    assert directions >= set(DIRECTIONS)
    assert len(ROWS) >= 29
    for direction, pair in DIRECTIONS.items():
        assert (families[ROWS[pair]["teacher"]], families[ROWS[pair]["student"]]) == direction


def test_the_peak_of_memory_is_that_since_it_was_last_reset():
    reset_peak()
    before = peak_gigabytes()
    block = torch.ones(2**26)  # a quarter of a GiB
    assert before + 0.2 < peak_gigabytes() < before + 0.4
    del block
    assert peak_gigabytes() > before + 0.2
    reset_peak()
    assert peak_gigabytes() < before + 0.1
