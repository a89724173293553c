"""`fbt table`: a table on the terminal, as its Markdown file shows it, and the claims about it."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from fbt_paper.claims.verdicts import Evidence, judge_all
from fbt_paper.config.claims import named_cells
from fbt_paper.plan.claims import ClaimPlan
from fbt_paper.plan.targets import Flow
from fbt_paper.status.commands import new_console
from fbt_paper.status.show import new_table
from fbt_paper.tables.render import CellText, all_remarks, make_sheet
from fbt_paper.tables.results import collect_tables

LEADS = {"leads": "bold green", "tied": "underline"}
VERDICTS = {"holds": "bold green", "contradicted": "bold red"}


def as_terminal_text(cell: str | CellText) -> Text:
    """A cell: what leads its column beyond noise is bold, what is tied with it underlined."""
    # As Text: rich reads brackets in a plain string as markup.
    if isinstance(cell, str):
        return Text(cell)
    return Text(cell.ours, style=LEADS.get(cell.lead, "")).append(cell.rest, style="not bold")


def print_table(flow: Flow, name: str) -> None:
    """Print a table from the results of its runs; raises UserError if one of them is missing."""
    (results,) = collect_tables(flow, [name])
    sheet, console = make_sheet(results), new_console()
    console.print(Text(results.title, style="bold"))
    if sheet.scale_label:
        console.print(Text(sheet.scale_label, style="yellow"))
    table = new_table(sheet.head)  # words: allow
    for label, *cells in sheet.lines:
        table.add_row(Text(str(label), style="cyan"), *map(as_terminal_text, cells))
    console.print(table)
    for remark in all_remarks(sheet):
        console.print(Text(remark, style="yellow" if remark.startswith("Warning") else "dim"))
    print_claims(flow, name)


def print_claims(flow: Flow, table: str) -> None:
    """Print the verdict on each claim that names a cell of this table."""
    claims = [
        claim
        for claim in ClaimPlan(flow).claims
        if table in {cell.split("/")[0] for cell in named_cells(claim).values()}
    ]
    console = new_console()
    for judgement in judge_all(claims, Evidence(flow.config, flow.plan, Path(flow.results))):
        line = Text(f"{judgement.verdict}: ", style=VERDICTS.get(judgement.verdict, "yellow"))
        console.print(line.append(f"{judgement.claim.says} ({judgement.words})", style="not bold default"))
