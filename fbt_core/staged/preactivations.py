"""What a stage gives before its last ReLU: ReviewKD's authors compare features there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn


def find_last_relus(
    network: nn.Module, stages: Sequence[Callable[[Tensor], Tensor]], x: Tensor
) -> tuple[str | None, ...]:
    """For each stage the name of the ReLU whose output is the stage's, or None; x is what stage 1 takes."""
    outputs: dict[str, object] = {}
    names = {m: name for name, m in network.named_modules() if isinstance(m, nn.ReLU | nn.ReLU6)}
    hooks = [
        relu.register_forward_hook(lambda relu, _, output: outputs.update({names[relu]: output}))
        for relu in names
    ]
    last = []
    try:
        for stage in stages:
            # Cleared for each stage: only ReLUs that ran in it can end it.
            outputs.clear()
            x = stage(x)
            # By identity: the stage's output is the very tensor that the ReLU gave.
            last.append(next((name for name, output in outputs.items() if output is x), None))
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(last)


def record_input(relu: nn.Module, inputs: tuple[Tensor]) -> None:
    """A forward hook that keeps what a ReLU takes; a copy, for the ReLU may work in place."""
    relu.recorded = inputs[0].clone()
