"""The bill of a plan: counted MACs, twice as many FLOPs, every epoch's training and test images."""

import json
from types import SimpleNamespace

import pytest

from fbt_paper.config.load import ConfigError
from fbt_paper.plan.bill import Bill, Cost, estimate, read_macs, read_training_macs
from fbt_paper.plan.speeds import PRECISIONS, Speeds

MACS = {"swin_t": 50, "resnet18": 10}
TRAINING = {"kd": {"swin_t__resnet18": 79}, "fbt": {"swin_t__resnet18": 100}}


def run(method, teacher="swin_t", student="resnet18", image_size=224, **parameters):
    """What the bill reads of a RunSpec: 3 epochs of 1000 training and 200 test images."""
    network = lambda name: SimpleNamespace(architecture=name) if name else None  # noqa: E731
    return SimpleNamespace(
        dataset=SimpleNamespace(
            train_images=1000, test_images=200, image_size=image_size, loader="image_folder"
        ),
        recipe=SimpleNamespace(
            epochs=3, tests=3, precision="float32", augmentation=SimpleNamespace(rand_augment=None)
        ),
        method=SimpleNamespace(name=method, parameters=parameters),
        teacher=network(teacher),
        student=network(student),
    )


def flops(*runs, macs=MACS):
    return round(estimate(runs, macs, TRAINING).pflops * 1e15)


def test_a_counted_method_costs_what_was_counted():
    assert flops(run("fbt")) == 3 * 2 * (1000 * 100 + 200 * 10)


def test_a_method_without_a_count_of_its_own_costs_what_kd_costs():
    assert flops(run("rkd")) == flops(run("kd")) == 3 * 2 * (1000 * 79 + 200 * 10)


def test_crd_costs_its_products_with_two_memory_banks_more():
    banks = 4 * 128 * 1000  # forward and gradient of two banks of 1000 vectors
    assert flops(run("crd", width=128)) == flops(run("kd")) + 3 * 2 * 1000 * banks


def test_without_a_count_a_step_is_three_passes_of_the_student_and_one_of_the_teacher():
    assert flops(run("fbt", "resnet18", "swin_t")) == 3 * 2 * (1000 * (3 * 50 + 10) + 200 * 50)
    assert flops(run("scratch", None)) == 3 * 2 * (1000 * 30 + 200 * 10)


def test_smaller_images_cost_less_and_runs_add_up():
    assert flops(run("fbt", image_size=112)) * 4 == flops(run("fbt"))
    assert flops(run("fbt"), run("kd")) == flops(run("fbt")) + flops(run("kd"))


def test_an_architecture_without_a_count_is_named_once():
    assert estimate([run("kd"), run("fbt")], {"swin_t": 50}, TRAINING).uncounted == ("resnet18",)


def speeds(low=20.0, high=40.0, rate=1000.0, cores=8.0):
    return Speeds(dict.fromkeys(PRECISIONS, (low, high)), {"photographs/plain": rate}, cores, "test", "test")


def test_gpu_hours_are_a_range_that_follows_from_the_throughput():
    cost = Cost(flops=144e15, precision="float16", images=1, loading="photographs/plain")
    assert Bill((cost, cost), ()).gpu_hours(speeds()) == (2.0, 4.0)


def test_no_gpu_is_faster_than_its_loaders():
    """28.8 million images at 1000 a second and core, 8 cores: an hour."""
    cost = Cost(flops=144e15, precision="float16", images=28_800_000, loading="photographs/plain")
    assert cost.loading_hours(speeds()) == 1.0
    assert cost.gpu_hours(speeds(low=80.0, high=1e9)) == (1.0, 1.0)
    assert cost.gpu_hours(speeds(rate=500.0)) == (2.0, 2.0)


def test_training_and_test_images_are_loaded_every_epoch():
    (cost,) = estimate([run("fbt")], MACS, TRAINING).costs
    assert (cost.images, cost.loading, cost.precision) == (3 * 1200, "photographs/plain", "float32")


def test_the_committed_counts_can_be_read_and_fit_each_other():
    macs, training = read_macs(), read_training_macs()
    assert {name for pairs in training.values() for pair in pairs for name in pair.split("__")} <= set(macs)
    assert all(isinstance(count, int) for pairs in training.values() for count in pairs.values())


@pytest.mark.parametrize(
    ("read", "command"),
    [(read_macs, "fbt_core.measure.cost networks"), (read_training_macs, "fbt_core.measure.training_cost")],
)
def test_a_broken_file_is_named_with_the_command_that_makes_it(tmp_path, read, command):
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"swin_t": 1})[:-1])
    with pytest.raises(ConfigError, match=command) as error:
        read(file)
    assert str(file) in str(error.value)
