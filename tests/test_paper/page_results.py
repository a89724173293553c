"""A folder with made-up results of a whole scale, for the tests of the page."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from fbt_paper.plan.figures import FigurePlan
from fbt_paper.plan.targets import Flow
from tests.test_paper.made_up_results import PIXEL, write_scale

RULES = Path(__file__).parents[2] / "workflow/rules/figures.smk"


def write_results(folder: Path, page: str = "index", scale: str = "smoke") -> Flow:
    """A Flow whose results lie in `folder` (its paths are made absolute)."""
    here = Path.cwd()
    flow = Flow({"scale": scale}, here / "config")
    flow.results = os.fspath(folder / "results" / flow.scale)
    flow.runs = f"{flow.results}/runs"
    write_scale(flow, flow.plan.of_page(page))
    return flow


def figure_files(plan: FigurePlan, name: str) -> dict[str, Path]:
    """The files of a drawing by key, its extracted arrays among them, as its rule states them."""
    (rule,) = re.findall(rf"rule plot_{plan.drawings[name].kind}:(.*?)\n    log:", RULES.read_text(), re.S)
    files = re.findall(r'(\w+)=(?:report\(\s*)?f"{FIGURES.folder}/{{figure}}(\S+)"', rule)
    return {key: Path(plan.folder, f"{name}{ending}") for key, ending in files}


def write_pixels(plan: FigurePlan, page: str = "index") -> list[Path]:
    """Pictures of one pixel for a page's figures; the files that describe them."""
    described = []
    for name in plan.drawn(page):
        files, drawing = figure_files(plan, name), plan.drawings[name]
        pictures = []
        for part in (key.removesuffix("png") for key in files if key.endswith("png")):
            files[f"{part}png"].parent.mkdir(parents=True, exist_ok=True)
            files[f"{part}png"].write_bytes(PIXEL)
            keys = [key for key in (f"{part}pdf", f"{part}csv") if key in files]
            picture = {"png": str(files[f"{part}png"]), "title": part.rstrip("_")}
            links = [(files[key].name, key[-3:].upper()) for key in keys]
            pictures.append({**picture, "words": f"{drawing.title} {part}", "files": links})
        about = {
            "key": name,
            "kind": drawing.kind,
            "table": drawing.table,
            "title": drawing.title,
            "caption": drawing.caption,
            "notes": [],
        }
        files["about"].write_text(json.dumps({**about, "pictures": pictures}))
        described.append(files["about"])
    return described
