"""Draw the README's picture of FBT, teacher -> fused model -> student, from what the engine builds.

python scripts/draw_idea.py [FILE]          default: docs/pictures/fbt.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from fbt_core.fusion.fused import choose_direction
from fbt_paper.figures.canvas import new_panels, styled

COLOURS = {"teacher": "#D55E00", "student": "#0072B2", "L2G": "#009E73"}
STAGES = ("S1", "S2", "S3", "", "S4", "classifier")
"""The columns of the picture; the fourth is empty but for the fused model, which has L2G there."""
ROWS = {"teacher": 3.2, "fused model": 1.7, "student": 0.2}
NOTES = {"teacher": "frozen, e.g. Swin-T", "fused model": "only L2G is new", "student": "e.g. ResNet18"}
LEFT, STEP, WIDTH, HEIGHT = 1.5, 1.12, 0.94, 0.62
OUTPUT = LEFT + 5 * STEP + WIDTH + 0.1


def fused_parts(student_family: str, teacher_family: str) -> list[tuple[str, str]]:
    """(part, whose it is) of the fused model, in the order in which an image passes them."""
    teacher_ends = choose_direction(student_family, teacher_family) == "teacher_head"
    early, last = ("student", "teacher") if teacher_ends else ("teacher", "student")
    owners = (early, early, early, "L2G", last, last)
    return [(stage or "L2G", owner) for stage, owner in zip(STAGES, owners, strict=True)]


def draw_row(axes: Axes, name: str, parts: list[tuple[str, str]]) -> None:
    """A network's parts as boxes from left to right, in the colour of the network they belong to."""
    bottom = ROWS[name]
    middle = bottom + HEIGHT / 2
    axes.text(LEFT - 0.2, middle, name, ha="right", va="center", fontsize=8, weight="bold")
    axes.text(LEFT - 0.2, middle - 0.33, NOTES[name], ha="right", va="center", fontsize=6, color="#555555")
    end = None
    for column, (part, owner) in enumerate(parts):
        if not part:
            continue
        left, colour = LEFT + column * STEP, COLOURS[owner]
        shape = "round,pad=0,rounding_size=0.08"
        axes.add_patch(FancyBboxPatch((left, bottom), WIDTH, HEIGHT, boxstyle=shape, color=colour, lw=0))
        axes.text(left + WIDTH / 2, middle, part, ha="center", va="center", color="white", fontsize=7)
        if end is not None:
            draw_arrow(axes, (end, middle), (left, middle), "#888888", bend=0.0)
        end = left + WIDTH


def draw_transfer(axes: Axes, source: str, target: str, bend: float, label: str, distance: float) -> None:
    """What is transferred between two networks' outputs: a bent arrow with its loss beside it."""
    start, end = ROWS[source] + HEIGHT / 2, ROWS[target] + HEIGHT / 2
    draw_arrow(axes, (OUTPUT, start), (OUTPUT, end), "#000000", bend)
    axes.text(OUTPUT + distance, (start + end) / 2, label, va="center", fontsize=7)


def draw_arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float
) -> None:
    """An arrow between two points, bent to the right by this part of its length."""
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.1, "shrinkA": 1, "shrinkB": 1}
    axes.annotate("", end, start, arrowprops={**style, "connectionstyle": f"arc3,rad={-bend}"})


def draw(path: Path) -> None:
    """A CNN student with an attention teacher, as in most pairs of the paper."""
    with styled():
        figure, panels = new_panels(1, 1, (6.9, 2.9))
        axes = panels[0, 0]
        axes.set(xlim=(0, 10.9), ylim=(-0.45, 4.0))
        axes.axis("off")
        draw_row(axes, "teacher", [(stage, "teacher") for stage in STAGES])
        draw_row(axes, "fused model", fused_parts("cnn", "msa"))
        draw_row(axes, "student", [(stage, "student") for stage in STAGES])
        draw_transfer(axes, "teacher", "fused model", 0.22, "L(K$_t$, K$_f$)", 0.28)
        draw_transfer(axes, "fused model", "student", 0.22, "L(K$_f$, K$_s$)", 0.28)
        draw_transfer(axes, "teacher", "student", 0.9, "L(K$_t$, K$_s$)", 1.5)
        caption = "K: final feature and logits of teacher (t), fused model (f), student (s)"
        axes.text(OUTPUT, -0.3, caption, ha="right", va="center", fontsize=6, color="#555555")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures/fbt.svg"))
