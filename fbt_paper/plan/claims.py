"""Which claims are judged in which file, and from which results: what workflow/rules/claims.smk asks."""

from __future__ import annotations

from collections.abc import Iterator

from fbt_paper.config.claims import Claim, Observation, Ratio, cell_paths, load_claims, named_cells
from fbt_paper.plan.shown import digest, renderer, table_shows
from fbt_paper.plan.targets import Flow

FILES = {"claims": "index", "claims_grid": "grid"}
"""Claims file -> the page it belongs to."""


class ClaimPlan:
    """All claims of one scale as files under results/<scale>/."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.claims = load_claims(flow.config)

    def of(self, name: str) -> tuple[Claim, ...]:
        """The claims of a file: those that its tables can answer, and on the main page those of figures."""
        return tuple(claim for claim in self.claims if self._belongs(claim, name))

    def inputs(self, name: str) -> list[str]:
        """What the verdicts of a file are made from: claims, printed numbers, results, counts, figures."""
        files = dict.fromkeys(["config/claims.yaml"])
        for claim in self.of(name):
            files.update(dict.fromkeys(self._evidence(claim)))
        return list(files)

    def shows(self, name: str) -> str:
        """A digest of everything that a claims file shows besides results."""
        config, claims = self.flow.config, self.of(name)
        # The tables' digests are part of it: labels and printed numbers stand in the verdicts' words.
        tables = {cell.split("/")[0] for claim in claims for cell in named_cells(claim).values()}
        shown = [table_shows(config, self.flow.plan, table) for table in sorted(tables)]
        return digest(renderer("claims", "tables"), claims, shown, config.datasets)

    def target(self, name: str) -> list[str]:
        """The files of the verdicts."""
        # A scale without such claims must not ask Snakemake for an empty file.
        if not self.of(name):
            return []
        return [f"{self.flow.results}/{name}.{kind}" for kind in ("csv", "md", "tex")]

    def of_page(self, page: str) -> list[str]:
        """The verdicts that a page begins with: one CSV, or none if it has no claims."""
        names = [name for name, shown_on in FILES.items() if shown_on == page and self.of(name)]
        return [f"{self.flow.results}/{name}.csv" for name in names]

    def _belongs(self, claim: Claim, name: str) -> bool:
        shown = self.flow.plan.of_page(FILES[name])
        tables = {cell.split("/")[0] for cell in named_cells(claim).values()}
        # Only if all its tables are on the page: else `snakemake all` would train a grid for one claim.
        return tables <= set(shown) if tables else FILES[name] == "index"

    def _evidence(self, claim: Claim) -> Iterator[str]:
        if isinstance(claim, Observation):
            yield f"{self.flow.results}/figures/{claim.figure}_claims.csv"
        for path in cell_paths(self.flow.config, claim):
            table, row, column = path.split("/")
            # Printed differences stand beside the measured ones, so their file is an input as well.
            if table in self.flow.config.references:
                yield f"config/tables/{table}.reference.csv"
            if isinstance(claim, Ratio):
                yield f"{self.flow.results}/costs/{table}.json"
            elif (cell := self.flow.plan.tables[table].cells.get((row, column))) is not None:
                yield from (f"{self.flow.runs}/{run}/metrics.json" for run in cell.runs)
