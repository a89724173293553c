"""Any network whose forward_features is a plain chain of its modules; the general adapter, asked last.

One dry run records which module got which tensor. Where each got exactly what the one before it gave, the
chain is the network: the stem, then the stages (layers, blocks, ...), then what stands before the pooling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from fbt_core.staged.base import Parts, UnknownStructure, call, chain
from fbt_core.staged.dealing import STAGES

ORDER = 100
BODIES = ("stages", "layers", "blocks", "levels", "dense_stages", "features", "body")


@dataclass
class Call:
    """One call of a module: what it took and gave, how often each was changed in place, the calls inside."""

    name: str
    takes: object
    taken_version: int
    gives: object = None
    given_version: int = 0
    inner: list[Call] = field(default_factory=list)

    def feeds(self, other: Call) -> bool:
        """Whether the other call took just what this one gave."""
        # Versions count changes in place: the same tensor may hold other values by then.
        return self.gives is other.takes and self.given_version == other.taken_version

    def opened(self) -> list[Call]:
        """The calls inside if they are a chain from what this one took to what it gave, else itself."""
        inside = self.inner
        whole = inside and inside[0].takes is self.takes and inside[-1].gives is self.gives
        if whole and is_chain(inside) and inside[-1].given_version == self.given_version:
            return inside
        return [self]


def recognise(network: nn.Module) -> bool:
    """A network with timm's two halves of a forward."""
    return hasattr(network, "forward_features") and hasattr(network, "forward_head")


def cut(network: nn.Module, image: Tensor) -> Parts:
    """The recorded chain; the body's longest pieces are opened until there are four."""
    stem, body, tail = divide(recorded(network, image))
    # The body decides: fewer than four pieces cannot be four stages.
    while len(body) < STAGES:
        body = open_longest(body)
    return Parts(
        chain(*(part.name for part in stem)),
        tuple(chain(part.name) for part in body),
        chain(*(part.name for part in tail)).run,
        call("forward_head"),
        channels_last=all(_channels_last(part.gives) for part in body),
        prefix_tokens=getattr(network, "num_prefix_tokens", 0),
    )


def recorded(network: nn.Module, image: Tensor) -> Call:
    """forward_features with all calls inside it; raises UnknownStructure if it is no chain."""
    whole = Call("forward_features", image, image._version)
    with _recording(network, whole):
        whole.gives = network.forward_features(image)
        whole.given_version = getattr(whole.gives, "_version", 0)
    # Some networks wrap everything in one module, whose inside is the chain.
    while len(whole.opened()) == 1 and whole.opened() != [whole]:
        whole = whole.inner[0]  # the chain may be one module's
    if whole.opened() == [whole]:
        raise UnknownStructure(f"forward_features is no plain chain of modules: {first_break(whole)}")
    return whole


def divide(whole: Call) -> tuple[list[Call], list[Call], list[Call]]:
    """Stem, body and tail of the chain: the body is the first container with one of the usual names."""
    calls = []
    # A container's children are the pieces; a stem's stay together.
    for part in whole.opened():
        calls += part.opened() if part.name in BODIES else [part]
    for name in BODIES:
        inside = [index for index, part in enumerate(calls) if part.name.startswith(f"{name}.")]
        # From the first to the last of the body's children, with whatever stands between them.
        if inside:
            return calls[: inside[0]], calls[inside[0] : inside[-1] + 1], calls[inside[-1] + 1 :]
    return calls[:1], calls[1:], []


def open_longest(body: Sequence[Call]) -> list[Call]:
    """The body with its longest piece opened; raises UnknownStructure when none can be."""
    lengths = [len(part.opened()) for part in body]
    if not lengths or max(lengths) == 1:
        raise UnknownStructure(f"its body has {len(body)} pieces and none of them is a chain")
    # The longest piece: most likely a stage whose blocks are worth a cut.
    longest = lengths.index(max(lengths))
    return [*body[:longest], *body[longest].opened(), *body[longest + 1 :]]


def is_chain(calls: Sequence[Call]) -> bool:
    """Whether each call took what the one before it gave."""
    return all(before.feeds(after) for before, after in zip(calls, calls[1:], strict=False))


def first_break(whole: Call) -> str:
    """Where the calls stop being a chain, in words."""
    before = Call("the image", None, 0, whole.takes, whole.taken_version)
    for part in whole.inner:
        if not before.feeds(part):
            return f"{part.name} does not take just what {before.name} gives"
        before = part
    return f"the result is not just what {before.name} gives"


@contextmanager
def _recording(network: nn.Module, whole: Call) -> Iterator[None]:
    """Inside, every module's call is hung under the call that made it."""
    open_calls = [whole]

    def enter(name: str, inputs: tuple[object, ...], options: dict[str, object]) -> None:
        # Modules of several inputs are recorded too: they break the chain, and the message names them.
        takes = inputs[0] if len(inputs) == 1 and not options else inputs
        started = Call(name, takes, getattr(takes, "_version", 0))
        open_calls[-1].inner.append(started)
        open_calls.append(started)

    def leave(output: object) -> None:
        # Popped in the order of returning: a call's parent is what is still open.
        finished = open_calls.pop()
        finished.gives, finished.given_version = output, getattr(output, "_version", 0)

    hooks = []
    for name, module in network.named_modules():
        if name:
            entering = lambda _, inputs, options, name=name: enter(name, inputs, options)  # noqa: E731
            hooks.append(module.register_forward_pre_hook(entering, with_kwargs=True))
            hooks.append(module.register_forward_hook(lambda _, inputs, output: leave(output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _channels_last(x: object) -> bool:
    # Square maps whose channels differ from their side; a network where both agree is not guessed.
    return isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] == x.shape[2] != x.shape[3]
