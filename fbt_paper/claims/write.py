"""The files of the verdicts, `claims.*` or `claims_grid.*`, of finished and of partial results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fbt_core.files import write_text
from fbt_paper.claims import show
from fbt_paper.claims.verdicts import Evidence, judge_all
from fbt_paper.plan.claims import ClaimPlan
from fbt_paper.plan.targets import Flow


def write_claims(flow: Flow, name: str, folder: Path) -> Iterator[Path]:
    """Judge the claims of a file (`claims`, `claims_grid`) by what is there; yields what was written."""
    judgements = judge_all(ClaimPlan(flow).of(name), Evidence(flow.config, flow.plan, Path(flow.results)))
    datasets = dict.fromkeys(spec.dataset.name for spec in flow.plan.runs.values())
    data, teachers = f"scale {flow.scale}, {', '.join(datasets)}", flow.config.main.teacher_seeds
    texts = {
        "_intervals.csv": show.intervals_to_csv(judgements),
        ".csv": show.to_csv(judgements),
        ".md": show.to_markdown(judgements, data, teachers),
        ".tex": show.to_latex(judgements, data, teachers),
    }
    for ending, text in texts.items():
        write_text(folder / f"{name}{ending}", text)
        yield folder / f"{name}{ending}"
