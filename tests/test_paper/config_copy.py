"""A copy of config/ that a test may break."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fbt_paper.config.load import CONFIG_FOLDER, Config, ConfigError, load
from fbt_paper.plan.claims import ClaimPlan
from fbt_paper.plan.figures import FigurePlan
from fbt_paper.plan.runs import Plan, plan
from fbt_paper.plan.targets import Flow

ARCHITECTURES = {
    "resnet18",
    "resnet34",
    "resnet50",
    "mobilenetv1",
    "mobilenetv2",
    "convnext_t",
    "vit_s",
    "deit_t",
}
ARCHITECTURES |= {"swin_t", "swin_n", "swin_p", "mixer_b16", "resmlp_s12"}
"""The networks of the paper's grid."""


class ConfigCopy:
    """config/ in a temporary folder, edited by replacing text that must be there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "config"
        shutil.copytree(CONFIG_FOLDER, self.folder)

    def path(self, name: str) -> Path:
        return self.folder / name

    def replace(self, name: str, old: str, new: str) -> None:
        text = self.path(name).read_text()
        assert old in text, f"{name} holds no {old!r}"
        self.path(name).write_text(text.replace(old, new, 1))

    def append(self, name: str, text: str) -> None:
        with self.path(name).open("a") as file:
            file.write(text)

    def write(self, name: str, text: str) -> None:
        self.path(name).write_text(text)

    def load(self, overrides: Mapping[str, Any] | None = None) -> Config:
        return load(self.folder, overrides)

    def plan(self, scale: str = "smoke", **overrides: Any) -> Plan:
        return plan(self.load({"scale": scale, **overrides}))

    def problems(self) -> list[str]:
        """The problems that planning reports; none where it works."""
        try:
            flow = Flow({}, self.folder)
            FigurePlan(flow), ClaimPlan(flow)
        except ConfigError as error:
            return [str(problem) for problem in error.problems]
        return []
