"""Parts of a run on several processes: gathering, dividing, BatchNorm over another number of images."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import nullcontext

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fbt_core import checkpoint, collectives, distributed, running_statistics, train
from fbt_core.batch_division import check_accumulation, check_pairs, share_of_batch
from fbt_core.collectives import gather_with_gradient, rows_of
from fbt_core.data.feed import Batches, Fault
from fbt_core.distributed import Group, Vote
from fbt_core.errors import UserError
from fbt_core.learner import Learner
from fbt_core.normalisation import set_normalisation_batch
from fbt_core.spec import ExecutionSettings
from tests.test_core.engine_runs import (
    EVERYTHING,
    PLAIN,
    arguments,
    at_step,
    in_child,
    make_spec,
    measured,
    metrics_of,
    weights_of,
    write_images,
)
from tests.test_core.methods_kit import make_method
from tests.test_core.test_distributed_runs import run_together

CPU = torch.device("cpu")


def recipe(**changes):
    return make_spec(**{f"recipe__{name}": value for name, value in changes.items()}).recipe


def test_a_single_process_gathers_its_own_rows():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather_with_gradient(x) is x
    assert Vote().ask(Vote.STOP) == Vote.STOP


def test_indivisible_batch_lists_what_divides():
    assert share_of_batch(recipe(batch_size=12), Group(CPU, 0, 3), 2) == 2
    with pytest.raises(UserError, match="12 cannot be divided by 5 processes.*1, 2, 3, 4, 6, 12"):
        share_of_batch(recipe(batch_size=12), Group(CPU, 0, 5), 1)


def test_smaller_normalisation_batch_is_reached_by_groups():
    torch.manual_seed(0)
    norm, plain = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    set_normalisation_batch(norm, recipe(normalisation_batch=4), Group(CPU, 0, 1), 1)
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
            nn.BatchNorm2d(3), recipe(normalisation_batch=wanted), Group(CPU, 0, world), accumulation
        )


def test_networks_without_batch_norm_take_any_division():
    layer = nn.LayerNorm(3)
    assert set_normalisation_batch(layer, recipe(normalisation_batch=6), Group(CPU, 0, 4), 4) is layer


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
        ("fcfd", {}, True),
        ("fitnet", {"features": "final_pooled", "loss": "mse"}, False),
        ("fitnet", {"features": "final_pooled", "loss": "infonce"}, True),
        ("fbt", {"feature_loss": "infonce"}, True),
        ("fbt", {"feature_loss": "none"}, False),
    ],
)
def test_losses_that_compare_images_refuse_to_be_cut_in_parts(name, parameters, refused):
    method = make_method(name, **parameters)
    check_accumulation(method, recipe(), 1)
    check_accumulation(method, recipe(allow_changed_batch=True), 2)
    message = f"method '{name}' (compares|draws).*allow_changed_batch: true"
    with pytest.raises(UserError, match=message) if refused else nullcontext():
        check_accumulation(method, recipe(), 2)


def test_a_recipe_may_allow_a_changed_batch_and_is_another_run_then():
    """BatchNorm then sees the images of one part, those of all processes together."""
    norm, x = nn.BatchNorm2d(3), torch.randn(8, 3, 5, 5)
    expected = nn.BatchNorm2d(3)(x)
    set_normalisation_batch(norm, recipe(allow_changed_batch=True), Group(CPU, 0, 1), 2)
    assert torch.equal(norm(x), expected)
    with pytest.raises(UserError, match="set it to one of 2, 4, 8, or set allow_changed_batch: true"):
        set_normalisation_batch(norm, recipe(), Group(CPU, 0, 1), 2)
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
    groups, parts = (measured(tmp_path / name, spec) for name in ("groups", "parts"))
    assert [line[2] for line in groups] == pytest.approx([line[2] for line in parts], abs=5e-4)
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


def test_what_is_scored_has_one_set_of_running_statistics(root, tmp_path):
    """Each process normalises its own half of a batch, so each has seen other images until an epoch ends."""
    spec = make_spec(recipe__normalisation_batch=8)

    def prepare(rank: int) -> None:
        start = Learner.start_evaluation

        def watched(learner: Learner, *values) -> None:
            before = running_statistics.of_processes(learner.with_statistics)
            start(learner, *values)
            mine, other = running_statistics.of_processes(learner.with_statistics)
            assert not torch.equal(*before)
            assert torch.equal(mine, other)
            assert torch.allclose(mine.double(), before.double().mean(0))

        Learner.start_evaluation = watched

    assert run_together(arguments(spec, tmp_path, root), 2, prepare) == [0, 0]


def in_step_of_second(act, epoch=0):
    """Prepares the second of two processes so that it acts in an epoch's fourth step."""

    def prepare(rank: int) -> None:
        step = train.train_step

        def watched(learners, stream, teacher, key, raw):
            if rank == 1 and (key.epoch, key.step) == (epoch, 3):
                act()
            step(learners, stream, teacher, key, raw)

        train.train_step = watched

    return prepare


def in_evaluation_of_second(act):
    """Prepares the second of two processes so that it acts in its first batch of test images."""

    def prepare(rank: int) -> None:
        counts, calls = Learner.count_test_batch, iter(range(1, 1000))

        def watched(learner, network, *batch):
            if rank == 1 and next(calls) == 1:
                act()
            return counts(learner, network, *batch)

        Learner.count_test_batch = watched

    return prepare


def send_signal() -> None:
    os.kill(os.getpid(), signal.SIGUSR2)


@pytest.fixture(scope="module")
def together(root, tmp_path_factory):
    """A run on two processes, each BatchNorm over the images of one of them."""
    spec, runs = make_spec(recipe__normalisation_batch=8), tmp_path_factory.mktemp("together")
    assert run_together(arguments(spec, runs, root), 2) == [0, 0]
    return spec, weights_of(runs, spec), measured(runs, spec)


@pytest.mark.parametrize("where", [in_step_of_second, in_evaluation_of_second])
def test_two_processes_stop_together_when_one_gets_the_signal_and_resume(
    where, together, root, tmp_path, capfd
):
    spec, weights, numbers = together
    command, folder = arguments(spec, tmp_path, root), tmp_path / spec.id
    assert run_together(command, 2, where(send_signal)) == [75, 75]
    reports = [line for line in capfd.readouterr().err.splitlines() if "interrupted" in line]
    assert len(reports) == 1
    position = "step 5" if where is in_step_of_second else "epoch 1, step 6"
    assert "SIGUSR2: state saved" in reports[0] and position in reports[0]
    assert "SIGUSR2: state saved" in json.loads((folder / "progress.json").read_text())["error"]
    assert run_together(command, 2) == [0, 0]
    assert weights_of(tmp_path, spec) == weights
    assert measured(tmp_path, spec) == numbers
    assert metrics_of(tmp_path, spec)["execution"]["world_size"] == 2


def test_a_process_with_an_old_view_of_the_folder_ends_the_run_with_one_line(together, root, tmp_path, capfd):
    """Its node shows an older checkpoint: training on would end well, with wrong numbers."""
    spec, weights, _ = together
    command, folder = arguments(spec, tmp_path, root), tmp_path / spec.id
    assert run_together(command, 2, in_evaluation_of_second(send_signal)) == [75, 75]
    old = (folder / "last.pt").read_bytes()
    assert run_together(command, 2, in_step_of_second(send_signal, epoch=1)) == [75, 75]
    capfd.readouterr()

    def see_the_old_one(rank: int) -> None:
        checkpoint.WAIT_SECONDS = 1.0
        if rank == 1:
            read, digest = checkpoint.read, checkpoint.digest
            stale = tmp_path / "stale.pt"
            stale.write_bytes(old)
            checkpoint.read = lambda path, spec: read(stale, spec)
            checkpoint.digest = lambda path: digest(stale)

    assert run_together(command, 2, see_the_old_one) == [1, 1]
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "process 1 does not see the checkpoint that process 0 has read" in errors[0]
    assert run_together(command, 2) == [0, 0]
    assert weights_of(tmp_path, spec) == weights


def test_processes_that_loaded_different_weights_stop_before_the_first_step(root, tmp_path, capfd):
    command = arguments(make_spec(), tmp_path, root)
    assert run_together(command, 2, in_step_of_second(send_signal)) == [75, 75]
    capfd.readouterr()

    def other_weights(rank: int) -> None:
        if rank == 1:
            read = checkpoint.read

            def changed(path, spec):
                content = read(path, spec)
                next(iter(content["trainable"].values())).add_(1e-3)
                return content

            checkpoint.read = changed

    assert run_together(command, 2, other_weights) == [1, 1]
    assert "weights of processes [1] are not those of process 0" in capfd.readouterr().err


def test_a_checkpoint_of_two_processes_continues_on_one(root, tmp_path):
    spec = make_spec()
    command = arguments(spec, tmp_path / "both", root)
    assert run_together(command, 2, in_step_of_second(send_signal)) == [75, 75]
    assert in_child(command) == 0
    assert in_child(arguments(spec, tmp_path / "one", root)) == 0
    losses = [[line[2] for line in measured(tmp_path / name, spec)] for name in ("both", "one")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_no_process_leaves_before_the_checkpoint_is_written(root, tmp_path):
    spec, runs = make_spec(), tmp_path / "runs"

    def prepare(rank: int) -> None:
        in_step_of_second(send_signal)(rank)
        write = checkpoint.save

        def slow(*values):
            time.sleep(1.5)
            write(*values)

        checkpoint.save = slow

    ended: list[bool] = []
    assert run_together(arguments(spec, runs, root), 2, prepare, lambda: ended.append(saved(runs, spec))) == [
        75,
        75,
    ]
    assert ended == [True, True]


@pytest.mark.parametrize(("began", "goes_on"), [(1, 2), (2, 1)])
def test_another_number_of_processes_changes_a_run_by_rounding_alone(began, goes_on, root, tmp_path):
    """Promised in config/README.md: same batches and draws; sums in another order."""
    spec = make_spec(EVERYTHING, recipe__epochs=4)
    command = arguments(spec, tmp_path / "changed", root)

    def stop_in_second_epoch(rank: int) -> None:
        if rank == began - 1:
            at_step(8, lambda: os.kill(os.getpid(), signal.SIGUSR2))()

    assert run_together(command, began, stop_in_second_epoch) == [75] * began
    assert run_together(command, goes_on) == [0] * goes_on
    for world in (began, goes_on):
        undisturbed = tmp_path / str(world)
        assert run_together(arguments(spec, undisturbed, root), world) == [0] * world
        for changed, whole in zip(
            measured(tmp_path / "changed", spec), measured(undisturbed, spec), strict=True
        ):
            assert changed[:2] == whole[:2]
            assert changed[2] == pytest.approx(whole[2], rel=2e-3), "the loss is another one, not rounded"
            assert changed[4] == pytest.approx(whole[4], abs=100 / 30 + 1e-9)


def saved(runs, spec) -> bool:
    return (runs / spec.id / "last.pt").exists()


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_process_ends_all_with_one_line(failing, root, tmp_path, capfd):
    spec, folder = make_spec(), tmp_path / make_spec().id

    def prepare(rank: int) -> None:
        make = Batches.__getitem__

        def gone(batches, key):
            if rank == failing and (key.epoch, key.step) == (0, 3):
                return Fault("data/train/cat/7.png: image file is gone")
            return make(batches, key)

        Batches.__getitem__ = gone

    assert run_together(arguments(spec, tmp_path, root), 2, prepare) == [1, 1]
    text = capfd.readouterr().err
    assert "Traceback" not in text
    reports = [line for line in text.splitlines() if line.startswith("error")]
    assert reports == ["error: data/train/cat/7.png: image file is gone"]
    progress = json.loads((folder / "progress.json").read_text())
    assert (progress["state"], progress["error"]) == ("failed", "data/train/cat/7.png: image file is gone")
    assert "7.png: image file is gone" in (folder / "log.txt").read_text()


def test_an_error_of_all_processes_is_told_once(root, tmp_path, capfd):
    spec = make_spec(recipe__batch_size=15)
    assert run_together(arguments(spec, tmp_path, root), 2) == [1, 1]
    assert capfd.readouterr().err.count("cannot be divided by 2 processes") == 1


def test_a_process_that_cannot_join_because_another_failed_says_nothing(tmp_path, capfd):
    """The group forms on the first process a moment earlier, which fails at once: no data."""

    def prepare(rank: int) -> None:
        start = distributed.start

        def late(settings):
            group = start(settings)
            time.sleep(rank)
            if rank:
                raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
            return group

        distributed.start = late

    assert run_together(arguments(make_spec(), tmp_path, tmp_path / "nowhere"), 2, prepare) == [1, 1]
    text = capfd.readouterr().err
    assert "Traceback" not in text
    assert [line for line in text.splitlines() if line.startswith("error")] == [text.splitlines()[0]]
    assert "nowhere does not exist" in text.splitlines()[0]


def test_a_process_that_is_killed_is_told_of_in_one_line(root, tmp_path, capfd):
    """Killed by the kernel, say: it says nothing itself."""
    kill = in_step_of_second(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert run_together(arguments(make_spec(), tmp_path, root), 2, kill) == [1, -signal.SIGKILL]
    text = capfd.readouterr().err
    assert "Traceback" not in text
    assert "another process of this run is gone" in text.strip().splitlines()[-1]


def test_rows_of_the_batch_are_made_once(monkeypatch):
    """Made anew, they would be copied to the GPU at each step, and the copy waits for it."""
    rows = collectives._rows(1, 4, 2, CPU), collectives._back_in_order(4, 2, CPU)
    monkeypatch.setattr(torch, "tensor", None)
    assert collectives._rows(1, 4, 2, CPU) is rows[0]
    assert collectives._back_in_order(4, 2, CPU) is rows[1]


@pytest.mark.parametrize(
    ("batch", "world", "offered"),
    [(15, 1, "multiple of 2, e.g. 14 or 16"), (6, 2, "multiple of 4, e.g. 4 or 8")],
)
def test_mixing_needs_an_even_share(root, tmp_path, capfd, batch, world, offered):
    spec = make_spec({**PLAIN, "mixup": 0.8}, recipe__batch_size=batch)
    assert run_together(arguments(spec, tmp_path, root), world) == [1] * world
    reports = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert len(reports) == 1
    assert "recipe.batch_size" in reports[0] and offered in reports[0]
    plain = make_spec(recipe__batch_size=batch, recipe__normalisation_batch=batch // world)
    check_pairs(plain.recipe, Group(CPU, 0, world))


def test_place_counts_from_torchruns_environment(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.start(ExecutionSettings(threads=1)).first
