"""The survey of timm: any network, cut by structure."""

import pytest
import timm
import torch
from torch import Tensor, nn

from fbt_core.fusion import FusedModel
from fbt_core.measure import survey as survey_module
from fbt_core.measure.survey import (
    NETWORKS,
    SurveyedNetwork,
    examine,
    line,
    markdown,
    model_files,
    survey,
    surveyed_networks,
    totals,
)
from fbt_core.staged import UnknownStructure, stage


class Chain(nn.Module):
    """A network that no special adapter knows: three groups of blocks, then a norm."""

    def __init__(self, inplace: bool = False, residual: bool = False) -> None:
        super().__init__()
        self.inplace, self.residual = inplace, residual
        self.start = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.Sequential(*(group(depth) for depth in (1, 1, 3)))
        self.final = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.start(x)
        if self.inplace:
            x += 1
        first = x
        x = self.layers(x)
        return self.final(x + first.mean() if self.residual else x)

    def forward_head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def group(depth):
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)) for _ in range(depth)]
    return nn.Sequential(nn.AvgPool2d(2), *blocks)


def test_a_chain_that_no_adapter_knows_is_opened_until_it_has_four_stages():
    network = Chain()
    staged = stage(network.eval(), 32)
    assert staged.adapter == "sequence"
    assert [shape.grid[0] for shape in staged.shapes] == [16, 8, 4, 4]
    assert [type(module).__name__ for module in staged.stage_modules("head")] == ["BatchNorm2d", "Linear"]
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(staged(x), network(x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inplace": True}, "layers does not take just what start gives"),
        ({"residual": True}, "final does not take just what layers gives"),
    ],
)
def test_glue_between_the_modules_is_noticed(options, words):
    with pytest.raises(UnknownStructure, match=words):
        stage(Chain(**options), 32)


def test_every_file_of_timm_that_gives_intermediates_is_surveyed_by_a_network_of_its_own():
    listed = dict(row.split() for row in NETWORKS.read_text("utf-8").splitlines())
    networks = surveyed_networks()
    assert list(networks) == model_files() and len(networks) >= 80
    for file, name in networks.items():
        assert name in timm.list_models(module=file), (file, name)
    assert set(listed) <= set(networks) or timm.__version__ != "1.0.31"


@pytest.mark.parametrize(
    "file",
    [
        "edgenext",
        "vovnet",
        "densenet",
        "senet",
        "regnet",
        "levit",
        "xcit",
        "eva",
        "convit",
        "twins",
        "mvitv2",
    ],
)
def test_networks_of_other_structures_pass_all_three(file):
    finding = examine(file, surveyed_networks()[file])
    assert finding.passes, finding.reason


def test_a_student_has_to_begin_and_to_end_the_fused_model(monkeypatch):
    """Whether it is a CNN decides which of the two it does under a CNN teacher."""
    directions = []

    def watch(student, teacher, direction, **options):
        directions.append((student.adapter, teacher.adapter, direction))
        return FusedModel(student, teacher, direction, **options)

    monkeypatch.setattr(survey_module, "FusedModel", watch)
    assert examine("vision_transformer", surveyed_networks()["vision_transformer"]).passes
    vit, resnet = directions[0][:2]
    assert directions == [
        (vit, resnet, "teacher_head"), (vit, resnet, "student_head"), (resnet, vit, "teacher_head"),
    ]  # fmt: skip


def test_a_student_whose_last_stage_learns_nothing_at_the_end_is_no_student(monkeypatch):
    def silent(student, teacher, direction, **options):
        fused = FusedModel(student, teacher, direction, **options)
        if direction == "student_head":
            fused._networks[0].finish = lambda x: [x.detach().flatten(1).requires_grad_()] * 2
        return fused

    monkeypatch.setattr(survey_module, "FusedModel", silent)
    finding = examine("resnet", "resnet10t")
    assert finding.cut and not finding.student
    assert finding.reason == "the fused loss does not reach the student's late parts"


def test_a_network_that_fails_is_reported_with_the_reason_and_not_raised():
    finding = examine("pit", "pit_ti_224")
    assert not (finding.cut or finding.student or finding.teacher)
    assert "forward_features is no plain chain of modules" in finding.reason


def test_the_report_counts_what_passed():
    findings = [
        SurveyedNetwork("a", "a_1", 64, "vit", True, True, True),
        SurveyedNetwork("b", "b_1", reason="x | y"),
    ]
    assert "2 files: 1 cut bit-exactly, 1 fusable as student, 1 fusable as teacher, 1 all three" in totals(
        findings
    )
    assert "| a | a_1 | 64 | vit | yes | yes | yes |  |" in markdown(findings)
    assert "| b | b_1 | - |  | no | no | no | x / y |" in markdown(findings)
    assert line(findings[0]).split()[:6] == ["a", "a_1", "64", "yes", "yes", "yes"]


@pytest.mark.slow
def test_at_least_sixty_files_of_timm_pass_all_three():
    findings = survey()
    failed = [line(finding) for finding in findings if not finding.passes]
    assert sum(finding.passes for finding in findings) >= 60, "\n".join(failed)
    assert all(finding.reason for finding in findings if not finding.passes)
