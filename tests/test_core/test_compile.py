"""torch.compile: no method is compiled again after the second epoch; what falls back is counted and said."""

from __future__ import annotations

import pytest
import torch

from fbt_core.batch_division import EAGER, wrap
from fbt_core.distributed import Group
from fbt_core.methods import method_names
from fbt_core.provenance import compile_fallbacks
from fbt_core.spec import ExecutionSettings
from tests.test_core.methods_kit import (
    CLASSES,
    IMAGES,
    PAIRS,
    in_process_of_its_own,
    make_batch,
    make_method,
    observe,
)

EPOCHS, STEPS = 4, 2


class CountingBackend:
    """Takes graphs as they are, so that no compiler of C++ is needed, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in method_names() if name not in EAGER])
@in_process_of_its_own
def test_no_method_is_compiled_again_after_the_second_epoch(name):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    backend = CountingBackend()
    method = make_method(name, PAIRS["cnn", "msa"], labels=torch.arange(IMAGES) % CLASSES)
    step, graphs = torch.compile(method, backend=backend), []
    for epoch in range(EPOCHS):
        method.train()
        method.start_epoch(epoch)
        for number in range(STEPS):
            batch = make_batch(seed=number)
            step(batch, observe(method, batch))["loss"].backward()
        graphs.append(backend.graphs)
    assert graphs[0] >= 1 and graphs[-1] == graphs[1], graphs
    assert compile_fallbacks() == 0


@in_process_of_its_own
def test_what_falls_back_is_counted():
    def read_number(tensor, text):
        return tensor * len(text) if tensor.sum().item() > 0 else tensor

    step = torch.compile(read_number, backend=CountingBackend(), dynamic=False)
    assert compile_fallbacks() is None
    step(torch.ones(2), "a")
    broken = compile_fallbacks()
    assert broken == 1
    with torch._dynamo.config.patch(recompile_limit=1):
        step(torch.ones(2), "ab")
    assert compile_fallbacks() > broken


def test_a_method_whose_graph_differs_at_each_step_stays_as_it_is():
    method = make_method("fcfd", PAIRS["cnn", "msa"])
    group = Group(torch.device("cpu"), 0, 1)
    assert wrap(method, ExecutionSettings(compile=True), group) is method
