"""Parts of a run on several processes: gathering, dividing, BatchNorm over another number of images."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fbt_core import distributed
from fbt_core.distributed import (
    Place,
    Vote,
    check_accumulation,
    gather_with_gradient,
    rows_of,
    share_of_batch,
)
from fbt_core.errors import UserError
from fbt_core.loop import Training
from fbt_core.normalisation import set_normalisation_batch
from fbt_core.spec import ExecutionSettings, MethodSpec
from tests.test_core.engine_runs import (
    arguments,
    in_child,
    make_spec,
    measured,
    metrics_of,
    weights_of,
    write_images,
)
from tests.test_core.test_distributed_runs import run_together

CPU = torch.device("cpu")


def recipe(**changes):
    return make_spec(**{f"recipe__{name}": value for name, value in changes.items()}).recipe


def test_a_single_process_gathers_its_own_rows():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather_with_gradient(x) is x
    assert Vote().ask(Vote.STOP) == Vote.STOP


def test_indivisible_batch_lists_what_divides():
    assert share_of_batch(recipe(batch_size=12), Place(CPU, 0, 3), 2) == 2
    with pytest.raises(UserError, match="12 cannot be divided by 5 processes.*1, 2, 3, 4, 6, 12"):
        share_of_batch(recipe(batch_size=12), Place(CPU, 0, 5), 1)


def test_smaller_normalisation_batch_is_reached_by_groups():
    torch.manual_seed(0)
    norm, plain = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    set_normalisation_batch(norm, recipe(normalisation_batch=4), Place(CPU, 0, 1), 1)
    x = torch.randn(16, 3, 5, 5)
    assert torch.equal(norm(x), torch.cat([plain(part) for part in x.chunk(4)]))
    assert torch.equal(norm.running_mean, plain.running_mean)
    norm.eval(), plain.eval()
    assert torch.equal(norm(x), plain(x))


@pytest.mark.parametrize(
    ("wanted", "world", "accumulation", "offered"),
    [(None, 1, 2, "2, 4, 8"), (6, 1, 1, "2, 4, 8, 16"), (16, 4, 2, "2"), (12, 4, 1, "2, 4, 8, 16")],
)
def test_unreachable_normalisation_batch_says_what_can_be_reached(wanted, world, accumulation, offered):
    allow = ", or set allow_changed_batch: true" if wanted is None else ""
    with pytest.raises(UserError, match=rf"normalisation_batch.*one of {offered}{allow} \(that is"):
        set_normalisation_batch(
            nn.BatchNorm2d(3), recipe(normalisation_batch=wanted), Place(CPU, 0, world), accumulation
        )


def test_networks_without_batch_norm_take_any_division():
    layer = nn.LayerNorm(3)
    assert set_normalisation_batch(layer, recipe(normalisation_batch=6), Place(CPU, 0, 4), 4) is layer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"))


def test_indivisible_batch_stops_a_run_before_its_first_step(root, tmp_path, capfd):
    command = arguments(make_spec(), tmp_path, root, gradient_accumulation=3)
    assert in_child(command) == 1
    assert "recipe.batch_size: batch_size 16 cannot be divided" in capfd.readouterr().err
    command = arguments(make_spec(), tmp_path, root, gradient_accumulation=2)
    assert in_child(command) == 1
    assert "set it to one of 2, 4, 8, or set allow_changed_batch: true " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "parameters", "refused"),
    [
        ("kd", {}, False),
        ("rkd", {}, True),
        ("fitnet", {"loss": "mse"}, False),
        ("fitnet", {"loss": "infonce"}, True),
        ("fbt", {"feature_loss": "infonce"}, True),
        ("fbt", {"feature_loss": "none"}, False),
    ],
)
def test_losses_that_compare_images_refuse_to_be_cut_in_parts(name, parameters, refused):
    method = MethodSpec(name=name, parameters=parameters, revision=1)
    check_accumulation(method, recipe(), 1)
    check_accumulation(method, recipe(allow_changed_batch=True), 2)
    message = f"method '{name}' compares.*allow_changed_batch: true"
    with pytest.raises(UserError, match=message) if refused else nullcontext():
        check_accumulation(method, recipe(), 2)


def test_a_recipe_may_allow_a_changed_batch_and_is_another_run_then():
    """BatchNorm then sees the images of one part, those of all processes together."""
    norm, x = nn.BatchNorm2d(3), torch.randn(8, 3, 5, 5)
    expected = nn.BatchNorm2d(3)(x)
    set_normalisation_batch(norm, recipe(allow_changed_batch=True), Place(CPU, 0, 1), 2)
    assert torch.equal(norm(x), expected)
    with pytest.raises(UserError, match="set it to one of 2, 4, 8, or set allow_changed_batch: true"):
        set_normalisation_batch(norm, recipe(), Place(CPU, 0, 1), 2)
    with pytest.raises(ValidationError):
        recipe(allow_changed_batch=False)  # leaving it out is the one way to say no: one id for one run
    assert make_spec().id != make_spec(recipe__allow_changed_batch=True).id


def test_allowed_changed_batch_trains_and_gives_another_result(root, tmp_path):
    """A network with BatchNorm, whole and in two parts: what it normalises over is another batch."""
    allowed = make_spec(recipe__allow_changed_batch=True)
    assert in_child(arguments(make_spec(), tmp_path, root)) == 0
    assert in_child(arguments(allowed, tmp_path, root, gradient_accumulation=2)) == 0
    whole, parts = ([line[2] for line in measured(tmp_path, spec)] for spec in (make_spec(), allowed))
    assert len(whole) == len(parts) == 2
    assert metrics_of(tmp_path, allowed)["execution"]["gradient_accumulation"] == 2
    assert whole != pytest.approx(parts, rel=1e-4)


def test_accumulation_with_the_spec_that_allows_it_trains_as_groups_do(root, tmp_path):
    """Two halves one after the other, each normalised alone: what one pass with groups of 8 gives."""
    spec = make_spec(recipe__normalisation_batch=8)
    for name, settings in (("groups", {}), ("parts", {"gradient_accumulation": 2})):
        assert in_child(arguments(spec, tmp_path / name, root, **settings)) == 0
    one, other = (measured(tmp_path / name, spec) for name in ("groups", "parts"))
    assert [line[2] for line in one] == pytest.approx([line[2] for line in other], abs=5e-4)
    shown = metrics_of(tmp_path / "parts", spec)["history"][0]
    assert shown["loss"] == pytest.approx(sum(shown["terms"].values()), abs=1e-5)


def test_gathering_gives_every_process_all_rows_and_the_whole_gradient(tmp_path):
    def check(rank: int) -> None:
        torch.distributed.init_process_group("gloo")
        whole = torch.arange(8.0).view(4, 2)
        mine = whole[list(rows_of(rank, 2, 4))].clone().requires_grad_()
        gathered = gather_with_gradient(mine)
        assert torch.equal(gathered, whole)
        (gathered.square().sum() * (rank + 1)).backward()
        assert torch.equal(mine.grad, 2 * mine.detach() * 3)  # the sum over both processes' losses
        os._exit(0)

    assert run_together([], 2, check) == [0, 0]


def test_two_processes_stop_together_when_one_gets_the_signal_and_resume(root, tmp_path):
    spec = make_spec()
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_together(arguments(spec, whole, root), 2) == [0, 0]

    def signal_second(rank: int) -> None:
        step = Training.train_step

        def watched(training, key, raw):
            if rank == 1 and (key.epoch, key.step) == (0, 3):
                os.kill(os.getpid(), signal.SIGUSR2)
            step(training, key, raw)

        Training.train_step = watched

    command = arguments(spec, stopped, root)
    assert run_together(command, 2, signal_second) == [75, 75]
    assert run_together(command, 2) == [0, 0]
    assert weights_of(stopped, spec) == weights_of(whole, spec)
    assert metrics_of(stopped, spec)["execution"]["world_size"] == 2


def test_place_counts_from_torchruns_environment(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.start(ExecutionSettings(threads=1)).first
