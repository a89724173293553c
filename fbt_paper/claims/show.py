"""The verdicts as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence

from fbt_paper.claims.verdicts import Judgement

HEADER = ("key", "where", "claim", "verdict", "evidence", "chance", "note")
ORDER = ("holds", "contradicted", "undecided", "not measured")
RULE = """\
A claim *holds* if the whole 95 % interval of the difference is on the claimed side, is *contradicted* if the
whole interval is on the other side, and is *undecided* otherwise: undecided is no verdict on the paper, it
means that these runs cannot decide. Differences are of the last epoch's top-1, paired by seed and test
image. What no interval here covers: a teacher trained again (each is trained once),
another recipe, another data set."""


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


def to_markdown(judgements: Sequence[Judgement], data: str) -> str:
    """The claims as a table under a count of the verdicts; `data` says what was trained on."""
    number = counts(judgements)
    lines = [
        "# Claims of the paper",
        "",
        ", ".join(f"{count} {verdict}" for verdict, count in number.items()) + f". Measured on: {data}.",
        "",
        RULE,
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
