"""Which timm networks can be cut: `python -m fbt_core.measure.survey_command [file ...] [--write FILE]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch

from fbt_core.measure.survey import Finding, model_files, survey

YES_NO = {True: "yes", False: "no"}
HEAD = """\
# Which timm networks can be cut and fused

Made by `python -m fbt_core.measure.survey_command --write docs/timm-survey.md`: one small network of each
timm model file that has `forward_intermediates`, at the smallest image size (64 px or more) that it takes.
*cut*: stem, four stages and head give the network's own output to the last bit, in eval and in train mode.
*student*, *teacher*: one forward and backward of the fused model with a small ResNet on the other side; a
student has to begin it, as a CNN does, and to end it, as an MSA or MLP does.

"""


def main() -> None:
    """Survey timm's model files and print one line for each, then the totals."""
    parser = argparse.ArgumentParser(prog="python -m fbt_core.staged", description=__doc__)
    parser.add_argument("files", nargs="*", help="timm model files, e.g. resnet; all when none is named")
    parser.add_argument("--write", type=Path, help="write the result as a Markdown table")
    options = parser.parse_args()
    unknown = sorted(set(options.files) - set(model_files()))
    if unknown:
        parser.error(f"no timm model file with forward_intermediates: {', '.join(unknown)}")
    torch.set_num_threads(1)
    findings = survey(options.files, report=lambda finding: print(line(finding), flush=True))
    print(totals(findings))
    if options.write:
        options.write.write_text(markdown(findings), "utf-8")


def line(finding: Finding) -> str:
    """One finding for the terminal."""
    answers = " ".join(f"{YES_NO[answer]:4}" for answer in (finding.cut, finding.student, finding.teacher))
    size = finding.image_size or "-"
    name = f"{finding.file:26}{finding.network:40}{size:>5}"
    return f"{name}  {answers} {finding.seconds:5.1f} s  {finding.reason[:150]}"


def totals(findings: list[Finding]) -> str:
    """How many passed each question and all three."""
    names = ("cut", "student", "teacher", "passes")
    counts = {name: sum(getattr(finding, name) for finding in findings) for name in names}
    return (
        f"{len(findings)} files: {counts['cut']} cut bit-exactly, {counts['student']} fusable as student, "
        f"{counts['teacher']} fusable as teacher, {counts['passes']} all three (timm {timm.__version__})"
    )


def markdown(findings: list[Finding]) -> str:
    """The findings as a document."""
    rows = ["| file | network | px | adapter | cut | student | teacher | reason |", "|---" * 8 + "|"]
    for one in findings:
        answers = " | ".join(YES_NO[answer] for answer in (one.cut, one.student, one.teacher))
        reason = one.reason.replace("|", "/")
        rows.append(
            f"| {one.file} | {one.network} | {one.image_size or '-'} | {one.adapter} | {answers} | {reason} |"
        )
    return f"{HEAD}{totals(findings)}.\n\n" + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
