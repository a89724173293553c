"""Two processes train what one trains: the same losses at each step, the same scores, one interruption."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.parallel import DistributedDataParallel

from fbt_core.data.order import seed_everything
from fbt_core.loss_log import LossLog
from fbt_core.methods.registry import method_facts, method_names
from fbt_core.run import main
from fbt_core.spec import RunSpec
from fbt_core.staged import build_network
from fbt_core.weights import file_sha256, serialise
from tests.test_core.engine_runs import arguments, make_spec, measured, network, write_images

METHODS = yaml.safe_load((Path(__file__).parents[2] / "config" / "methods.yaml").read_text())
VIT = {
    "create": "vit_small_patch16_224",
    "family": "msa",
    "options": {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2},
}
OTHER_VIT = {**VIT, "options": {**VIT["options"], "embed_dim": 32}}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), train=64)


def parameters(name: str) -> dict[str, Any]:
    """A method's parameters at scale smoke."""
    stated = METHODS[name]["parameters"]
    return {key: entry.get("by_scale", {}).get("smoke", entry["value"]) for key, entry in stated.items()}


def method_spec(
    name: str,
    folder: Path,
    student: dict[str, Any],
    teacher_entry: dict[str, Any] = OTHER_VIT,
    **changes: Any,
) -> tuple[RunSpec, dict[str, str]]:
    """A run of 20 steps with a random teacher kept in a file, and where that file is."""
    facts = method_facts(name)
    method = {"name": name, "parameters": parameters(name), "revision": facts.revision}
    method |= {"fusion_revision": 1} if facts.uses_fusion else {}
    teacher, files = None, {}
    if facts.needs_teacher:
        entry = {**network("teacher"), **teacher_entry}
        draft = make_spec(student=entry).student
        seed_everything(7, 0)
        path = folder / "teacher.safetensors"
        path.write_bytes(serialise(build_network(draft, 4, 32).state_dict()))
        sha = file_sha256(path)
        teacher, files = {**entry, "weights": f"file:{sha}"}, {sha: str(path)}
    spec = make_spec(
        student=student,
        teacher=teacher,
        method=method,
        dataset__train_images=64,
        recipe__epochs=5,
        recipe__optimizer__learning_rate=0.005,
        **changes,
    )
    return spec, files


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_together(
    command: list[str],
    world: int,
    prepare: Callable[[int], None] = lambda rank: None,
    at_end: Callable[[], object] = lambda: None,
) -> list[int]:
    """Run the engine in forked processes that find each other as torchrun's would; their exit codes.

    `at_end` is called when each of them ends, in the order in which they do.
    """
    port, children = free_port(), []
    for rank in range(world):
        child = os.fork()
        if not child:
            code = 99
            try:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
                os.environ.update({key: str(value) for key, value in ranks.items()})
                os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
                prepare(rank)
                code = main(command)
            finally:
                os._exit(code)
        children.append(child)
    codes = {}
    while len(codes) < world:
        child, status = os.wait()
        if child in children:
            codes[child] = os.waitstatus_to_exitcode(status)
            at_end()
    return [codes[child] for child in children]


def noting_losses(file: Path) -> Callable[[], None]:
    """Prepares a process to write down the loss and its terms at every step, one line each."""

    def prepare() -> None:
        check = LossLog._check

        def noting(log, rows, where, rate):
            with file.open("a") as lines:
                lines.writelines(json.dumps(row) + "\n" for row in rows.tolist())
            check(log, rows, where, rate)

        LossLog._check = noting

    return prepare


def losses_of(command: list[str], world: int, file: Path) -> torch.Tensor:
    """The loss and its terms at every step, (steps, 1 + terms)."""

    def prepare(rank: int) -> None:
        if rank == 0:
            noting_losses(file)()

    assert run_together(command, world, prepare) == [0] * world
    return torch.tensor([json.loads(line) for line in file.read_text().splitlines()], dtype=torch.float64)


def compare(spec: RunSpec, files: dict[str, str], folder: Path, root: Path, tolerance: float) -> None:
    """One and two processes: 20 steps with the same losses, the same test scores."""
    alone, both = folder / "one", folder / "two"
    options = {"weight_files": files, "log_steps": 1}
    single = losses_of(arguments(spec, alone, root, **options), 1, folder / "one.jsonl")
    double = losses_of(arguments(spec, both, root, **options), 2, folder / "two.jsonl")
    assert single.shape[0] == 20
    assert not torch.equal(single[0], single[-1]), "nothing was learned: the comparison shows nothing"
    assert (single - double).abs().max() <= tolerance, (single - double).abs().max(1).values
    for line, other in zip(measured(alone, spec), measured(both, spec), strict=True):
        assert line[4] == pytest.approx(other[4], abs=100 / 30 + 1e-9)


FAST = ("kd", "rkd", "fbt")


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in method_names()]
)
def test_two_processes_have_the_losses_of_one(name, root, tmp_path):
    spec, files = method_spec(name, tmp_path, {**network("student"), **VIT})
    compare(spec, files, tmp_path, root, 1e-5)


def test_batch_norm_shared_by_two_processes_is_that_of_one(root, tmp_path):
    spec, files = method_spec("kd", tmp_path, network("student"))
    compare(spec, files, tmp_path, root, 1e-4)


def test_mixed_passes_through_a_batch_norm_teacher_are_those_of_one(root, tmp_path):
    """FCFD's late stages of the frozen teacher normalise by the batch: that of both processes together."""
    spec, files = method_spec("fcfd", tmp_path, {**network("student"), **VIT}, network("teacher"))
    compare(spec, files, tmp_path, root, 1e-4)


@pytest.mark.slow
def test_parts_of_a_batch_share_one_exchange_of_gradients(root, tmp_path, monkeypatch):
    calls, no_sync = tmp_path / "calls", DistributedDataParallel.no_sync

    def counted(module):
        with calls.open("a") as lines:
            lines.write("x")
        return no_sync(module)

    monkeypatch.setattr(DistributedDataParallel, "no_sync", counted)
    spec, _ = method_spec("scratch", tmp_path, {**network("student"), **VIT})
    command = {
        world: arguments(spec, tmp_path / str(world), root, gradient_accumulation=parts)
        for world, parts in ((1, 1), (2, 4))
    }
    alone, together = (losses_of(command[world], world, tmp_path / f"losses{world}") for world in (1, 2))
    torch.testing.assert_close(together[-1], alone[-1], rtol=1e-3, atol=1e-4)
    assert len(calls.read_text()) == 2 * 20 * 3  # processes, steps, parts but the last
