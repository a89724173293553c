"""Figure 1: how the methods differ, drawn from what config/methods.yaml states of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib import rcParams
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from matplotlib.textpath import TextPath

from fbt_core.methods.facts import MethodFacts
from fbt_paper.figures.canvas import OURS, PAPER, QUIET, new_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADER = ("method", "transfers", "levels", "losses", "generic", "extra_parameters", "uses_fusion", "citation")
TITLES = ("method", "levels", "transfers", "losses", "any pair", "adds")
LEVELS_WIDTH, GAP, ROW_HEIGHT, EXTRA_HEIGHT = 1.05, 0.16, 0.19, 0.12
"""Inches of the drawn chain, between columns, of a line, and what a chain of three needs besides."""
TAKES_ANY_PAIR = "takes any pair as published"
ADAPTED = "made for similar architectures, adapted here"


def list_methods(facts: Mapping[str, MethodFacts]) -> list[tuple[str, MethodFacts]]:
    """Distillation methods in drawing order: by levels, then by what they transfer, then by name."""
    methods = [(name, entry) for name, entry in facts.items() if entry.needs_teacher]
    return sorted(methods, key=lambda item: (item[1].levels, item[1].transfers, item[0]))


def taxonomy_rows(facts: Mapping[str, MethodFacts]) -> list[tuple[object, ...]]:
    """The figure as rows of a table, in drawing order (HEADER names the columns)."""
    columns = HEADER[1:]
    return [(name, *(_plain(getattr(entry, key)) for key in columns)) for name, entry in list_methods(facts)]


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value))
    return value


def draw_taxonomy(facts: Mapping[str, MethodFacts]) -> Figure:
    """One line per method: its levels as a chain of nodes, what it transfers, its losses, generic or not."""
    methods = [entry for _, entry in list_methods(facts)]
    cells = [_cells(entry) for entry in methods]
    # Measured before there is a figure: its size follows from its texts, which a new method brings along.
    columns, width = _lay_columns(cells)
    middles = _lay_lines(methods)
    height = middles[-1] + 2.1 * ROW_HEIGHT
    figure, ((axes,),) = new_panels(1, 1, (width, height))
    figure.set_layout_engine("constrained", w_pad=0, h_pad=0)
    # Data are inches from the top left: what is drawn and what was measured are in one unit.
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    for title, x in columns.items():
        axes.text(x, 0.7 * ROW_HEIGHT, title, va="center", weight="bold")
    axes.plot([0.03, width - 0.03], [1.25 * ROW_HEIGHT] * 2, color="black", linewidth=0.6)
    for index, (entry, y) in enumerate(zip(methods, middles, strict=True)):
        _draw_method(axes, y, entry, cells[index], columns, width if index % 2 == 0 else 0)
    _draw_key(axes, height - 0.45 * ROW_HEIGHT)
    return figure


def _lay_lines(methods: Sequence[MethodFacts]) -> list[float]:
    """Where each line's middle is, in inches from the top; below a chain of three is room for an arrow."""
    middles, y = [], 1.8 * ROW_HEIGHT
    for entry in methods:
        middles.append(y)
        y += ROW_HEIGHT + (EXTRA_HEIGHT if entry.levels >= 3 else 0)
    return middles


def _cells(entry: MethodFacts) -> dict[str, str]:
    return {
        "method": entry.title,
        "transfers": entry.transfers,
        "losses": ", ".join(entry.losses),
        "adds": "parameters" if entry.extra_parameters else "nothing",
    }


def _lay_columns(cells: Sequence[Mapping[str, str]]) -> tuple[dict[str, float], float]:
    """Where each column starts, and the whole width, in inches: as wide as the widest text in it."""
    columns, x = {}, 0.08
    for title in TITLES:
        columns[title] = x
        widest = max([text_width(title), *(text_width(cell[title]) for cell in cells if title in cell)])
        x += max(widest, LEVELS_WIDTH if title == "levels" else 0.0) + GAP
    return columns, x


def text_width(text: str) -> float:
    """Inches of a text in bold at the style's size (bold is the widest it is drawn)."""
    size = rcParams["font.size"]
    # As a path: measuring a drawn text would need a renderer, hence a figure.
    path = TextPath((0, 0), text, size=size, prop=FontProperties(weight="bold"))
    return float(path.get_extents().width) / 72.0 if text else 0.0


def _draw_method(
    axes: Axes,
    y: float,
    entry: MethodFacts,
    cells: Mapping[str, str],
    columns: Mapping[str, float],
    shade: float,
) -> None:
    levels = entry.levels
    if shade:
        corner, height = (0.03, y - ROW_HEIGHT / 2), ROW_HEIGHT + (EXTRA_HEIGHT if levels >= 3 else 0)
        axes.add_patch(Rectangle(corner, shade - 0.06, height, color="#f3f3f3", linewidth=0))
    for title, text in cells.items():
        axes.text(columns[title], y, text, va="center", weight="bold" if levels >= 3 else "normal")
    _draw_levels(axes, columns["levels"], y, levels)
    _draw_mark(axes, columns["any pair"] + 0.2, y, entry.generic)


def _draw_levels(axes: Axes, x: float, y: float, levels: int) -> None:
    """Teacher -> student, or teacher -> fused model -> student with the direct way below."""
    names = ("T", "F", "S") if levels >= 3 else ("T", "S")
    centres = [x + 0.07 + 0.85 * index / (len(names) - 1) for index in range(len(names))]
    # Arrows before nodes, which cover their ends.
    for start, end in zip(centres, centres[1:], strict=False):
        axes.add_patch(_arrow((start + 0.08, y), (end - 0.08, y)))
    if levels >= 3:  # from teacher to student, round the fused model; y grows downwards
        below = y + 0.06
        axes.add_patch(_arrow((centres[0] + 0.05, below), (centres[-1] - 0.05, below), bend=0.2))
    for name, centre in zip(names, centres, strict=True):
        colour = {"T": OURS, "F": PAPER}.get(name, "black")
        axes.add_patch(Circle((centre, y), 0.075, facecolor="white", edgecolor=colour, linewidth=0.8))
        axes.text(centre, y, name, ha="center", va="center_baseline", fontsize=5.5, color=colour)


def _arrow(start: tuple[float, float], end: tuple[float, float], bend: float = 0.0) -> FancyArrowPatch:
    return FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        connectionstyle=f"arc3,rad={bend}",
        mutation_scale=5,
        linewidth=0.7,
        color=QUIET,
        shrinkA=0,
        shrinkB=0,
    )


def _draw_mark(axes: Axes, x: float, y: float, yes: bool) -> None:
    """A filled square for yes, an open one for no: distinct without colour."""
    corner = (x - 0.05, y - 0.05)
    axes.add_patch(
        Rectangle(corner, 0.1, 0.1, facecolor="black" if yes else "white", edgecolor="black", linewidth=0.7)
    )


def _draw_key(axes: Axes, y: float) -> None:
    x = 0.13
    for yes, text in ((True, TAKES_ANY_PAIR), (False, ADAPTED)):
        _draw_mark(axes, x, y, yes)
        axes.text(x + 0.1, y, text, va="center", color=QUIET, fontsize=6)
        x += 0.3 + text_width(text)
    axes.text(x, y, "T teacher, F fused model, S student", va="center", color=QUIET, fontsize=6)


def describe(facts: Mapping[str, MethodFacts]) -> str:
    """The figure in words, for its alternative text."""
    methods = [entry for _, entry in list_methods(facts)]
    titles = {
        "three-level (teacher, fused model, student)": [m for m in methods if m.levels >= 3],
        ADAPTED: [m for m in methods if not m.generic],
        "without parameters of their own": [m for m in methods if not m.extra_parameters],
    }
    groups = "; ".join(
        f"{name}: {', '.join(method.title for method in group)}" for name, group in titles.items()
    )
    transfers: dict[str, list[str]] = {}
    for method in methods:
        transfers.setdefault(method.transfers, []).append(method.title)
    moved = "; ".join(f"{what} by {', '.join(names)}" for what, names in transfers.items())
    groups = f"{groups[0].upper()}{groups[1:]}"
    return f"{len(methods)} distillation methods compared. They transfer {moved}. {groups}."
