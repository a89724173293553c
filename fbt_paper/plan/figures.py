"""Which figures are drawn, from which runs, into which files: what workflow/rules/figures.smk asks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any

from fbt_core.errors import nearest
from fbt_core.spec import RunSpec
from fbt_paper.config.figures import FeaturesFigure, FigureConfig, SimilarityFigure
from fbt_paper.config.load import ConfigError, Problem
from fbt_paper.config.records import AccuracyTable
from fbt_paper.plan.run_spec import stand_in
from fbt_paper.plan.shown import digest, renderer, table_shows
from fbt_paper.plan.targets import Flow

ORDER = ("taxonomy", "features", "similarity", "sweeps", "curves", "gaps")
"""The paper's numbered figures come first."""
GAPS = "Our top-1 accuracies beside the printed ones; the gap is ours minus the paper's."


@dataclass(frozen=True)
class Drawing:
    """One figure file (without ending) with the kind that draws it, its title and its caption."""

    name: str
    kind: str
    title: str
    caption: str
    runs: tuple[str, ...] = ()
    table: str = ""


class FigurePlan:
    """All figures of one scale, in results/<scale>/figures/; the rules say what their files are called."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.folder = f"{flow.results}/figures"
        self.config: Mapping[str, FigureConfig] = flow.config.figures
        self.drawings = {drawing.name: drawing for drawing in self._list()}

    # ------------------------------------------------------------ what there is

    def _list(self) -> Iterator[Drawing]:
        for name, figure in self.config.items():
            if isinstance(figure, FeaturesFigure):
                yield self._features(name, figure)
            elif isinstance(figure, SimilarityFigure):
                yield from self._similarities(name, figure)
            elif figure.kind in ("curves", "sweeps"):
                yield from self._of_tables(name, figure)
            else:
                yield Drawing(name, figure.kind, figure.title, figure.caption)

    def _features(self, name: str, figure: FeaturesFigure) -> Drawing:
        runs = tuple(self._alone(network.architecture, figure.dataset, name) for network in figure.networks)
        return Drawing(name, "features", figure.title, figure.caption, runs)

    def _similarities(self, name: str, figure: SimilarityFigure) -> Iterator[Drawing]:
        for index, cell in enumerate(figure.cells):
            # Not looked up with the types: which cells there are follows from rows, columns and `skip`.
            cells = self.flow.plan.tables[cell.table].cells
            if (cell.row, cell.column) not in cells:
                known = nearest(f"{cell.row}, {cell.column}", map(", ".join, cells))
                message = f"table '{cell.table}' has no cell '{cell.row}, {cell.column}'; {known}"
                raise ConfigError([Problem(f"config/figures/{name}.yaml", f"cells[{index}]", message)])
            run = cells[cell.row, cell.column].runs[0]
            label = describe_pair(self.flow.spec(run), self.titles)
            key = f"{name}_{cell.table}_{cell.row}_{cell.column}"
            yield Drawing(key, "similarity", f"{figure.title}, {label}", figure.caption, (run,), cell.table)

    def _of_tables(self, name: str, figure: FigureConfig) -> Iterator[Drawing]:
        """A drawing of every accuracy table: its curves, or its sweeps if it has some."""
        for table, planned in self.flow.plan.tables.items():
            entry = self.flow.config.tables[table]
            if isinstance(entry, AccuracyTable) and (figure.kind == "curves" or entry.sweeps):
                title = f"{entry.title}: {figure.title.lower()}"
                yield Drawing(f"{name}_{table}", figure.kind, title, figure.caption, planned.runs, table)
                # A gap between unlike things means nothing: only of numbers that can be compared.
                if figure.kind == "curves" and not self.flow.config.stand_ins:
                    title = f"{entry.title}: ours against the paper"
                    yield Drawing(f"{name}_{table}_gaps", "gaps", title, GAPS, planned.runs, table)

    def _alone(self, architecture: str, dataset: str, figure: str) -> str:
        """The run that trains a network without a teacher: as a teacher, or as a student from scratch."""
        dataset = stand_in(self.flow.config, dataset, [architecture])
        # A run that a table plans anyway: a figure never trains anything of its own.
        runs = [
            run
            for run in self.flow.plan.runs.values()
            if run.teacher is None
            and run.student.architecture == architecture
            and run.dataset.name == dataset
            and not run.student.weights.startswith("run:")
        ]
        if not runs:
            message = f"no table trains '{architecture}' alone on {dataset}, so there is nothing to draw"
            raise ConfigError([Problem(f"config/figures/{figure}.yaml", "networks", message)])
        # Of several the teacher's, which has seen the most images.
        return min(runs, key=lambda run: (-run.dataset.train_images, run.seed)).id

    @property
    def titles(self) -> dict[str, str]:
        """Titles of the architectures, as printed."""
        return {key: entry.title for key, entry in self.flow.config.architectures.items()}

    # ------------------------------------------------------------ files

    def names(self, *kinds: str) -> list[str]:
        """Names of the drawings of these kinds (of all without any)."""
        return [name for name, drawing in self.drawings.items() if not kinds or drawing.kind in kinds]

    def pattern(self, *kinds: str) -> str:
        """A wildcard constraint that fits the names of these kinds only."""
        # Snakemake takes an empty constraint for none: the rule would then fit every name.
        return "|".join(self.names(*kinds)) or "none"

    def drawn(self, page: str) -> list[str]:
        """Names of the drawings on a page: of its tables, and on the main page those of no table."""
        tables = self.flow.plan.of_page(page)
        chosen = [
            name
            for name, drawing in self.drawings.items()
            if drawing.table in tables or (page == "index" and not drawing.table)
        ]
        # Sorting is stable: within a kind the drawings keep the order of config/figures.
        return sorted(chosen, key=lambda name: ORDER.index(self.drawings[name].kind))

    def shows(self, name: str) -> str:
        """A digest of everything that a drawing shows besides results and extracted arrays."""
        drawing, config = self.drawings[name], self.flow.config
        # `tables` as well: figures are drawn from the frame and the labels' mathematics that are made there.
        shown: list[object] = [renderer("tables", "figures"), self.flow.scale, astuple(drawing)]
        if drawing.kind in ("curves", "gaps", "sweeps"):
            shown.append(table_shows(config, self.flow.plan, drawing.table))
        if drawing.kind == "taxonomy":
            shown.append(config.methods)
        if drawing.kind == "features":
            # Only what is drawn of a network: another option of it changes the runs, and so the arrays.
            names = {key: (entry.title, entry.family) for key, entry in config.architectures.items()}
            shown += [self.figure_of(name), names]
        return digest(*shown)

    def page_shows(self, page: str) -> str:
        """A digest of everything that a page shows besides results and figures."""
        flow = self.flow
        tables = flow.plan.of_page(page)
        settings = [flow.scale, flow.config.main.recipes, flow.changes, self.drawn(page)]
        # A cell's evidence names its networks and the source of each setting.
        evidence = [flow.config.recipes, flow.config.methods, flow.config.architectures]
        return digest(renderer("page"), flow.shows(tables), settings, evidence)

    def files(self, page: str, rules: Any) -> list[str]:
        """All files of a page's figures: what the rules `plot_<kind>` say, with the drawings' names."""
        return [
            # Snakemake writes a wildcard's constraint into the output: {figure,figure1|figure2}.
            re.sub(r"\{figure\b[^}]*\}", name, str(file))
            for name in self.drawn(page)
            for file in getattr(rules, f"plot_{self.drawings[name].kind}").output
        ]

    def arguments(self, files: Mapping[str, str]) -> str:
        """The files of a rule as `fbt draw` takes them, quoted for a shell."""
        return shlex.join(f"{key}={file}" for key, file in files.items())

    def results(self, name: str) -> list[str]:
        """Results of a drawing's runs."""
        return [f"{self.flow.runs}/{run}/metrics.json" for run in self.drawings[name].runs]

    def weights(self, name: str) -> list[str]:
        """What an extraction reads: results and weights of its runs, and of their teachers."""
        runs = self.drawings[name].runs
        needed = [other for run in runs for other in self.flow.spec(run).needed_runs()]
        return [file for run in dict.fromkeys([*runs, *needed]) for file in self.flow.run_files(run)]

    def extraction(self, name: str) -> str:
        """The arguments of `python -m fbt_core.measure.features` for a drawing, quoted for a shell."""
        drawing = self.drawings[name]
        figure = self.figure_of(name)
        # The arguments are a param of the rule: another image or measure extracts again, a caption does not.
        arguments = ["--runs", self.flow.runs, "--measure", str(getattr(figure, "measure", 256))]
        if isinstance(figure, FeaturesFigure):
            for network, run in zip(figure.networks, drawing.runs, strict=True):
                arguments += ["--network", f"{network.architecture}={run}"]
            arguments += ["--positions", str(figure.positions), "--show", *map(str, figure.images)]
            return shlex.join(["stages", *arguments])
        return shlex.join(["similarity", "--run", drawing.runs[0], *arguments])

    def figure_of(self, name: str) -> FigureConfig:
        """The entry of config/figures that a drawing belongs to."""
        owners = [key for key in self.config if name == key or name.startswith(f"{key}_")]
        # The longest: `curves_all_table2` is of a figure `curves_all` if there is one, not of `curves`.
        return self.config[max(owners, key=len)]


def describe_pair(spec: RunSpec, titles: Mapping[str, str]) -> str:
    """A run's pair as a person reads it: Swin-T -> ResNet18."""
    student = titles.get(spec.student.architecture, spec.student.architecture)
    if spec.teacher is None:
        return student
    return f"{titles.get(spec.teacher.architecture, spec.teacher.architecture)} -> {student}"
