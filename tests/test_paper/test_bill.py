"""The bill of a plan: counted MACs, twice as many FLOPs, every epoch's training and test images."""

import json
from types import SimpleNamespace

import pytest

from fbt_paper.config.load import ConfigError
from fbt_paper.plan.bill import Bill, estimate, read_macs, read_training_macs

MACS = {"swin_t": 50, "resnet18": 10}
TRAINING = {"kd": {"swin_t__resnet18": 79}, "fbt": {"swin_t__resnet18": 100}}


def run(method, teacher="swin_t", student="resnet18", image_size=224, **parameters):
    """What the bill reads of a RunSpec: 3 epochs of 1000 training and 200 test images."""
    network = lambda name: SimpleNamespace(architecture=name) if name else None  # noqa: E731
    return SimpleNamespace(
        dataset=SimpleNamespace(train_images=1000, test_images=200, image_size=image_size),
        recipe=SimpleNamespace(epochs=3),
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


def test_gpu_hours_follow_from_the_throughput():
    assert Bill(pflops=144.0, uncounted=()).gpu_hours(tflops=40.0) == 1.0


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
