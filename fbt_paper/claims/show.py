"""The verdicts as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence

from fbt_paper.claims.verdicts import Judgement
from fbt_paper.tables.latex import escape_latex, footnotes, hints

HEADER = ("key", "where", "claim", "verdict", "evidence", "chance", "note")
INTERVALS = ("key", "pair", "verdict", "difference", "low", "high", "printed", "unit")
ORDER = ("holds", "contradicted", "undecided", "not measured")
RULE = """\
A claim *holds* if the whole 95 % interval of the difference is on the claimed side, is *contradicted* if the
whole interval is on the other side, and is *undecided* otherwise: undecided is no verdict on the paper, it
means that these runs cannot decide. Differences are of the last epoch's top-1, paired by seed and test
image. What no interval here covers: {teacher}another recipe, another data set."""
ONE_TEACHER = {"first": "a teacher trained again (each is trained once),\n", "each": ""}
"""What one teacher for all seeds leaves out, by config.yaml's `teacher_seeds`."""


def counts(judgements: Sequence[Judgement]) -> dict[str, int]:
    """How many claims hold, are contradicted, undecided, not measured."""
    verdicts: Counter[str] = Counter(judgement.verdict for judgement in judgements)
    return {verdict: verdicts[verdict] for verdict in ORDER}


def chance(judgement: Judgement) -> str:
    """What the interval takes into account."""
    if not judgement.sources:
        return ""
    # Said in the table itself: an interval of one seed leaves out what another seed would give.
    return " and ".join(judgement.sources) + ("; one seed" if judgement.sources == ("images",) else "")


def to_csv(judgements: Sequence[Judgement]) -> str:
    """One line per claim."""
    text = io.StringIO()
    # csv's own line end is \r\n.
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for judgement in judgements:
        claim = judgement.claim
        row = (claim.key, claim.where, claim.says, judgement.verdict, judgement.words)
        writer.writerow((*row, chance(judgement), claim.note or ""))
    return text.getvalue()


def intervals_to_csv(judgements: Sequence[Judgement]) -> str:
    """One line per comparison inside a claim: what was measured, its interval, what the paper prints."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(INTERVALS)
    for judgement in judgements:
        for part in judgement.parts:
            # A ratio of counted numbers has a value and no interval.
            numbers: tuple[float | None, ...] = (part.value, None, None)
            if part.measured is not None:
                numbers = (part.measured.mean, *part.measured.interval())
            unit = "ratio" if part.measured is None else "points"
            printed = "" if part.printed is None else f"{part.printed:g}"
            rounded = ["" if number is None else f"{number:.3f}" for number in numbers]
            writer.writerow((judgement.claim.key, part.name, part.verdict, *rounded, printed, unit))
    return text.getvalue()


def to_latex(judgements: Sequence[Judgement], data: str, teacher_seeds: str = "first") -> str:
    """The claims as a LaTeX table whose texts wrap within the width of the text."""
    caption = escape_latex(f"What these runs say of the paper's statements. Measured on: {data}.")
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering\footnotesize\sloppy",
        rf"\caption{{{caption}}}",
        r"\label{tab:claims}",
        # Of the width of the text less the three gaps between columns.
        r"\newlength{\claimswidth}\setlength{\claimswidth}{\dimexpr\linewidth-4\tabcolsep\relax}",
        r"\begin{tabular}{@{}p{.43\claimswidth}p{.18\claimswidth}p{.39\claimswidth}@{}}",
        r"\toprule",
        r"Claim & Verdict & Evidence (points, 95\,\% interval) \\",
        r"\midrule",
    ]
    for judgement in judgements:
        claim = judgement.claim
        cells = (f"{claim.says} ({claim.where})", judgement.verdict, judgement.words)
        lines.append(" & ".join(map(escape_latex, cells)) + r" \\")
    notes = footnotes([RULE.format(teacher=ONE_TEACHER[teacher_seeds]).replace("*", "")])
    table = "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes, r"\end{table}", ""])
    return "".join([*hints(table), table])


def to_markdown(judgements: Sequence[Judgement], data: str, teacher_seeds: str = "first") -> str:
    """The claims as a table under a count of the verdicts; `data` says what was trained on."""
    number = counts(judgements)
    lines = [
        "# Claims of the paper",
        "",
        ", ".join(f"{count} {verdict}" for verdict, count in number.items()) + f". Measured on: {data}.",
        "",
        RULE.format(teacher=ONE_TEACHER[teacher_seeds]),
        "",
        "| where | claim | verdict | evidence (points, 95 % interval) | chance of |",
        "|---|---|---|---|---|",
    ]
    for judgement in judgements:
        claim = judgement.claim
        says = claim.says + (f"<br>*{claim.note}*" if claim.note else "")
        cells = (claim.where, says, f"**{judgement.verdict}**", judgement.words, chance(judgement))
        # A | inside of a text would end its cell.
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])
