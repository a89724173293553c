"""Two processes learn what one with the whole batch learns."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from fbt_core.methods.base import Batch
from tests.test_core.methods_kit import IMAGES, make_batch, make_head_speak, make_method, run_step

pytestmark = pytest.mark.slow

PAIR = ("swin_t", "deit_t")  # no BatchNorm in the student: its statistics are each process's own
WORLD = 2
VARIANTS = {
    "kd": {},
    "dist": {},
    "cc": {},
    "rkd": {},
    "crd": {},
    "ofa": {},
    "lowpass": {},
    "ldrld": {},
    "srd": {},
    "fbt": {},
    "fitnet": {"features": "final_pooled", "loss": "infonce"},
}
DRAWS_ITS_OWN = {"crd"}  # each process draws its own negatives


def make(name):
    labels = torch.arange(IMAGES) % 10
    method = make_method(name, PAIR, labels=labels, **VARIANTS.get(name, {}))
    for network in (method.student, method.teacher):
        make_head_speak(network)
    return method


def gradients_of(method, batch):
    result = run_step(method, batch)
    result["loss"].backward()
    named = method.trainable_module.named_parameters()
    gradients = {name.removeprefix("module."): p.grad for name, p in named}
    return {name: torch.zeros(()) if gradient is None else gradient for name, gradient in gradients.items()}


def work(rank, folder, port):
    """One process: the gradients of its half of each batch, and CRD's banks."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    torch.manual_seed(rank)
    whole, results = make_batch(6), {}
    for name in VARIANTS:
        method = make(name).prepare_distributed()
        half = slice(3 * rank, 3 * rank + 3)
        part = Batch(whole.images[half], whole.target[half], whole.indices[half])
        results[name] = gradients_of(method, part)
        if name == "crd":
            results["banks"] = {key: value.clone() for key, value in method.extras.named_buffers()}
    results["gap"] = share_gaps(Batch(whole.images[half], whole.target[half], whole.indices[half]))
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def share_gaps(part):
    """PAT's gap of the first stage: its own, the state, what another method takes of it."""
    method, resumed = make("pat"), make("pat")
    run_step(method, part)
    state = method.extras["gap1"].get_extra_state()
    resumed.extras["gap1"].set_extra_state(state)
    return method.extras["gap1"].rows, state, resumed.extras["gap1"].rows


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("two")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port
    del store
    multiprocessing.spawn(work, args=(folder, port), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - DRAWS_ITS_OWN))
def test_gradients_are_those_of_the_whole_batch(halves, name):
    expected = gradients_of(make(name), make_batch(6))
    for half in halves:
        torch.testing.assert_close(half[name], expected, rtol=2e-3, atol=2e-5)


def test_the_gaps_of_all_processes_are_in_the_state_and_each_takes_its_own(halves):
    (first, state, _), (second, same, _) = (half["gap"] for half in halves)
    assert torch.equal(state, same) and torch.equal(state, torch.cat((first, second)))
    assert not torch.equal(first, second)
    assert all(torch.equal(half["gap"][0], half["gap"][2]) for half in halves)


def test_the_banks_of_all_processes_stay_equal_and_hold_every_image(halves):
    first, second = (half["banks"] for half in halves)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.manual_seed(0)
    alone = make("crd")
    before = alone.extras["student_bank"].vectors.clone()
    run_step(alone, make_batch(6))
    moved = (alone.extras["student_bank"].vectors != before).any(1)
    torch.testing.assert_close(
        first["student_bank.vectors"][moved], alone.extras["student_bank"].vectors[moved]
    )
