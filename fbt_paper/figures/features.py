"""Figure 2: features of the four stages, final features in channel groups, and the numbers behind the claims.

Reads what `python -m fbt_core.measure.features stages` wrote (an .npz); nothing here knows torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rcParams
from matplotlib.lines import Line2D

from fbt_paper.figures.canvas import PAGE_WIDTH, fit_note, new_figure, new_panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]

OVERLAY = 0.6
"""How much of an image a map laid over it covers."""
STAGES = (1, 2, 3, 4)
GROUPS = (1, 2, 3)
HEADER = ("network", "family", "quantity", "stage", "value")
CLAIM_HEADER = (
    "statement",
    "quantity",
    "first_group",
    "first",
    "second_group",
    "second",
    "holds",
    "positions",
)
MARKERS = {"cnn": ("o", "-"), "msa": ("s", "--"), "mlp": ("^", ":")}


@dataclass(frozen=True)
class Shown:
    """One network of the figure: its key in the arrays, its letter in the appendix, title, family."""

    key: str
    letter: str
    title: str
    family: str
    hierarchical: bool

    @property
    def label(self) -> str:
        """Letter and title, as a row of the figure is labelled."""
        return f"{self.letter} {self.title}".strip()


def normalise(picture: Array) -> Array:
    """The map from 0 (its least value) to 1 (its largest); an even map is 0 everywhere."""
    low, high = float(picture.min()), float(picture.max())
    if high > low:
        return (picture - low) / (high - low)
    return np.zeros_like(picture)


def draw_features(
    networks: Sequence[Shown], arrays: Arrays, images: Sequence[int], note: str, overlay: bool = False
) -> Figure:
    """One row per network; per image its four stages, then three channel groups of the final feature.

    `overlay` lays each map over its image.
    """
    across = len(images) * (1 + len(STAGES) + len(GROUPS))
    cell = (PAGE_WIDTH - 0.9) / (across + 0.4 * len(images))
    figure = new_figure((PAGE_WIDTH, cell * len(networks) * 1.08 + 0.55))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.015, wspace=0, hspace=0)
    # Narrow empty columns set groups and images apart: the layout's own gaps are alike everywhere.
    widths = [*(1.0 for _ in range(1 + len(STAGES))), 0.25, *(1.0 for _ in GROUPS), 0.25] * len(images)
    grid = figure.add_gridspec(len(networks), len(widths) - 1, width_ratios=widths[:-1])
    for i, network in enumerate(networks):
        for j, image in enumerate(images):
            start = j * (len(STAGES) + len(GROUPS) + 3)
            axes = [figure.add_subplot(grid[i, start + k]) for k in range(9) if k != 5]
            _draw_row(axes, network, arrays, image, top=i == 0, first=j == 0, overlay=overlay)
    figure.supxlabel(fit_note(note, PAGE_WIDTH), fontsize=6, x=0.01, ha="left")
    return figure


def _show(axis: Axes, picture: Array, below: Array | None) -> None:
    """A map, smoothly enlarged (its positions are no squares of the image); laid over the image if given."""
    if picture.ndim == 3:
        axis.imshow(picture, aspect="equal")
        return
    (height, width), alpha = picture.shape, 1.0
    if below is not None:
        (height, width), alpha = below.shape[:2], OVERLAY
        axis.imshow(below.mean(axis=2), cmap="gray", aspect="equal")
    axis.imshow(
        picture,
        aspect="equal",
        interpolation="bicubic",
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        alpha=alpha,
    )


def _draw_row(
    axes: Sequence[Axes],
    network: Shown,
    arrays: Arrays,
    image: int,
    top: bool,
    first: bool,
    overlay: bool,
) -> None:
    pictures = [arrays["images"][image]]
    pictures += [normalise(arrays[f"{network.key}.stage{stage}"][image]) for stage in STAGES]
    pictures += [normalise(arrays[f"{network.key}.groups"][image, group - 1]) for group in GROUPS]
    titles = ["image", *(f"S{stage}" for stage in STAGES), *(f"G{group}" for group in GROUPS)]
    for axis, picture, title in zip(axes, pictures, titles, strict=True):
        _show(axis, picture, arrays["images"][image] if overlay and title != "image" else None)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if top:
            axis.set_title(title, fontsize=6.5, pad=2)
    if first:
        axes[0].set_ylabel(network.label, rotation=0, ha="right", va="center", fontsize=6.5, labelpad=3)


def number_rows(networks: Sequence[Shown], arrays: Arrays) -> list[tuple[object, ...]]:
    """The numbers per network as rows of a table (HEADER names the columns)."""
    rows: list[tuple[object, ...]] = []
    for network in networks:
        name = (network.key, network.family)
        for quantity in ("entropy", "locality"):
            values = arrays[f"{network.key}.{quantity}"]
            rows += [(*name, quantity, stage, float(values[stage - 1])) for stage in STAGES]
        rows.append((*name, "group_similarity", 4, float(arrays[f"{network.key}.group_similarity"])))
        rows.append(
            (*name, "stage_similarity", None, stage_similarity(arrays[f"{network.key}.stage_similarity"]))
        )
    return rows


def stage_similarity(matrix: Array) -> float:
    """Mean CKA between different stages of one network: high where shallow and deep layers say the same."""
    upper = matrix[np.triu_indices(len(matrix), k=1)]
    return float(np.nanmean(upper))


@dataclass(frozen=True)
class Claim:
    """One statement of the appendix about Figure 2 as two numbers: it holds where `first` > `second`."""

    statement: str
    quantity: str
    first_group: str
    first: float
    second_group: str
    second: float
    positions: str = ""
    """On how many positions of a stage it is measured; empty where positions play no part."""

    @property
    def holds(self) -> bool:
        """Whether the order of the two means is the one that the appendix states."""
        return self.first > self.second


def check_claims(networks: Sequence[Shown], arrays: Arrays) -> list[Claim]:
    """The appendix's three observations (section C) as means over the networks they speak of."""
    cnn = [n for n in networks if n.family == "cnn"]
    other = [n for n in networks if n.family != "cnn"]
    uniform = [n for n in networks if not n.hierarchical]
    hierarchical = [n for n in networks if n.hierarchical]
    everyone = (("CNN", cnn), ("MSA and MLP", other))
    rows = [
        ("CNN features are local, MSA and MLP features global", "locality", *everyone),
        (
            "Shallow and deep features are alike in uniform networks, less so in hierarchical ones",
            "stage_similarity",
            ("uniform", uniform),
            ("hierarchical", hierarchical),
        ),
        (
            "Channel groups of CNNs light the same positions, those of others differ",
            "group_similarity",
            *everyone,
        ),
    ]
    return [
        Claim(
            statement,
            quantity,
            a[0],
            _mean(quantity, a[1], arrays),
            b[0],
            _mean(quantity, b[1], arrays),
            say_positions(quantity, arrays),
        )
        for statement, quantity, a, b in rows
        # A figure of fewer networks may have none of a group, and there is no mean of nothing.
        if a[1] and b[1]
    ]


def say_positions(quantity: str, arrays: Arrays) -> str:
    """The common grids that a quantity is measured on, stage by stage: 4 x 4, 2 x 2."""
    if quantity == "stage_similarity" or "grids" not in arrays:
        return ""
    grids = [f"{height} x {width}" for height, width in arrays["grids"]]
    return grids[-1] if quantity == "group_similarity" else ", ".join(grids)


def _mean(quantity: str, networks: Sequence[Shown], arrays: Arrays) -> float:
    values = [arrays[f"{network.key}.{quantity}"] for network in networks]
    if quantity == "stage_similarity":
        return statistics.fmean(stage_similarity(value) for value in values)
    return statistics.fmean(float(np.nanmean(value)) for value in values)


def draw_numbers(networks: Sequence[Shown], arrays: Arrays, note: str) -> Figure:
    """Entropy and locality by stage, and per network the similarity of stages and of channel groups."""
    figure, grid = new_panels(2, 2, (PAGE_WIDTH, 3.9))
    styles = {network.key: _style(index, network) for index, network in enumerate(networks)}
    for axes, quantity, label in zip(
        grid[0],
        ("entropy", "locality"),
        ("spatial entropy (1 = even)", "locality (neighbours - all pairs)"),
        strict=True,
    ):
        for network in networks:
            axes.plot(STAGES, arrays[f"{network.key}.{quantity}"], **styles[network.key])
        axes.set(xticks=STAGES, xlabel="stage", ylabel=label)
    _draw_bars(
        grid[1][0],
        networks,
        styles,
        [stage_similarity(arrays[f"{n.key}.stage_similarity"]) for n in networks],
    )
    grid[1][0].set_xlabel("similarity of stages (mean CKA)")
    _draw_bars(grid[1][1], networks, styles, [float(arrays[f"{n.key}.group_similarity"]) for n in networks])
    where = say_positions("group_similarity", arrays)
    over = f" on {where} positions" if where else ""
    grid[1][1].set_xlabel(f"similarity of channel groups{over}")
    handles = [Line2D([], [], **styles[network.key]) for network in networks]
    figure.legend(
        handles,
        [network.label for network in networks],
        loc="outside upper left",
        ncols=4,
        title=fit_note(note, PAGE_WIDTH),
        title_fontsize=6.5,
        alignment="left",
    )
    return figure


def _style(index: int, network: Shown) -> dict[str, Any]:
    colours = [entry["color"] for entry in rcParams["axes.prop_cycle"]]
    marker, line = MARKERS[network.family]
    # The style's cycle repeats its seven colours with other dashes; here the dashes show the family.
    return {"color": colours[index % 7], "marker": marker, "linestyle": line}


def _draw_bars(
    axes: Axes, networks: Sequence[Shown], styles: Mapping[str, Any], values: Sequence[float]
) -> None:
    heights = range(len(networks))
    axes.barh(heights, values, color=[styles[network.key]["color"] for network in networks], height=0.65)
    for y, value in enumerate(values):
        end = (max(value, 0), y)
        axes.annotate(f"{value:.2f}", end, xytext=(2, 0), textcoords="offset points", va="center", fontsize=6)
    axes.set_yticks(heights, [network.label for network in networks])
    # Bars are drawn from below; the first network stands on top, as in the maps.
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.tick_params(axis="y", length=0)


def describe_claim(claim: Claim) -> str:
    """A statement of the appendix with the two measured means, as one sentence."""
    verdict = "as stated" if claim.holds else "not as stated"
    means = f"{claim.first_group} {claim.first:.2f}, {claim.second_group} {claim.second:.2f}"
    where = f"; on {claim.positions} positions" if claim.positions else ""
    return f"{claim.statement}: {verdict} ({claim.quantity.replace('_', ' ')}: {means}{where})."


def describe_maps(networks: Sequence[Shown], claims: Sequence[Claim]) -> str:
    """The maps in words, for their alternative text."""
    names = ", ".join(network.key for network in networks)
    maps = f"Maps of stages S1 to S4 and channel groups G1 to G3 of {names}."
    return " ".join([maps, *map(describe_claim, claims)])


def describe_numbers(rows: pd.DataFrame) -> str:
    """The numbers in words: per quantity the networks' means, the largest first."""
    texts = []
    for quantity, values in rows.dropna(subset="value").groupby("quantity", sort=False):
        means = values.groupby("network", sort=False).value.mean().sort_values(ascending=False, kind="stable")
        numbers = ", ".join(f"{network} {mean:.2f}" for network, mean in means.items())
        over = " (mean over stages)" if len(values) > len(means) else ""
        texts.append(f"{str(quantity).replace('_', ' ')}{over}: {numbers}")
    return f"{'; '.join(texts)}."
