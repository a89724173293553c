"""What a step may not do: wait for the device, or run the teacher's early stages twice. For every method."""

from __future__ import annotations

import json
import os
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fbt_core import train
from fbt_core.methods.registry import method_names
from fbt_core.staged.model import StagedModel
from tests.test_core.engine_runs import EVERYTHING, arguments, in_child, network, write_images
from tests.test_core.test_distributed_runs import VIT, method_spec

READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim", "_unique2"}
"""Operations whose result, or its shape, a GPU must have finished before Python goes on."""
SENDS = {"lift_fresh"}
"""torch.tensor(...): numbers of Python, whose way to a GPU waits for it as well."""
PLACE = Path(__file__).parents[2] / "fbt_core"


class Waiting(TorchDispatchMode):
    """Notes the operations for which a GPU would have to be waited for, and the lines they are in."""

    def __init__(self) -> None:
        super().__init__()
        self.record: list[str] = []

    def __torch_dispatch__(self, operation, types, values=(), named=None):
        name = operation.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype == torch.bool for index in values[1]
        )
        if name in READS | SENDS or masks:
            frames = [
                frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(PLACE)
            ]
            where = f"{Path(frames[-1].filename).relative_to(PLACE)}:{frames[-1].lineno} {frames[-1].line}"
            self.record.append(f"{name} in {where}" if frames else name)
        return operation(*values, **(named or {}))


def one_hot(target: torch.Tensor, classes: int) -> torch.Tensor:
    """torch's own as it is on GPUs; on a CPU it reads the labels to check them."""
    zeros = torch.zeros(*target.shape, classes, dtype=torch.int64, device=target.device)
    return zeros.scatter_(-1, target.unsqueeze(-1), 1)


def watch_third_step(record: Path):
    """Prepares a run to end after its third step and to write down what that step did."""

    def prepare() -> None:
        step, run_pieces, stem = train.train_step, StagedModel._run_pieces, StagedModel.stem
        calls: list[tuple] = []

        def counted_stem(network, x):
            calls.append((id(network), "stem", x.data_ptr()))
            return stem(network, x)

        def counted(network, x, start, end):
            calls.append((id(network), (start, end), x.data_ptr()))
            return run_pieces(network, x, start, end)

        def watched(learners, stream, teacher, key, raw):
            if key.step < 2:
                return step(learners, stream, teacher, key, raw)
            calls.clear()
            StagedModel._run_pieces, StagedModel.stem = counted, counted_stem
            torch.nn.functional.one_hot = one_hot
            with Waiting() as waiting:
                step(learners, stream, teacher, key, raw)
            network = teacher.network if teacher else None
            mine = [call[1:] for call in calls if call[0] in (id(network), id(learners[0].method.teacher))]
            ends = network._ends if network else ()
            early = [list(pair) for pair in zip(ends[:3], ends[1:4], strict=True)] if network else []
            record.write_text(json.dumps({"waits": waiting.record, "teacher": mine, "early": early}))
            os._exit(0)

        train.train_step = watched

    return prepare


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), train=64)


@pytest.mark.parametrize("name", method_names())
def test_a_step_waits_for_nothing_and_runs_the_teacher_once(name, root, tmp_path):
    spec, files = method_spec(name, tmp_path, {**network("student"), **VIT}, augmentation=EVERYTHING)
    record = tmp_path / "record.json"
    command = arguments(spec, tmp_path, root, weight_files=files, log_steps=50)
    assert in_child(command, watch_third_step(record)) == 0
    step = json.loads(record.read_text())
    assert step["waits"] == []
    if not files:
        return
    ran = Counter(json.dumps(part) for part, _ in step["teacher"])
    assert ran['"stem"'] == 1
    parts = [json.dumps(part) for part in step["early"]]
    if name == "fcfd":  # its mixed paths lead what the student saw through the teacher's later stages
        first, *later = parts
        assert ran[first] == 1
        assert len(step["teacher"]) == len({json.dumps(call) for call in step["teacher"]})
    else:
        assert [ran[part] for part in parts] == [1, 1, 1]
