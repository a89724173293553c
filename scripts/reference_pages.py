"""docs/tables.md and docs/command.md: the tables of config/ with their claims, and every command of `fbt`.

python -m scripts.reference_pages     # writes them; a test keeps them in step
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from fbt_core.files import write_text
from fbt_paper.cli import make_parser
from fbt_paper.config.claims import Claim, load_claims, named_cells
from fbt_paper.config.load import CONFIG_FOLDER, load
from fbt_paper.config.records import AccuracyTable, CostTable, Table

DOCS = Path(__file__).resolve().parents[1] / "docs"
TABLES = """# Tables

Written by `python -m scripts.reference_pages` from `config/tables/` and `config/claims.yaml`.

`fbt run KEY` trains what a table needs, `fbt table KEY` prints it, `fbt plan KEY` says what it takes. A cell
is called `table/row/column` by its keys. How a verdict on a claim is reached: [claims.md](claims.md).
"""
COMMANDS = """# The command `fbt`

Written by `python -m scripts.reference_pages` from the command's own help, which
`fbt COMMAND --help` prints as well.
"""
SETTINGS = "settings"


def tables_page() -> str:
    """The text of docs/tables.md."""
    config = load(CONFIG_FOLDER, {"scale": "paper"})
    claims = load_claims(config)
    sections = ["\n".join(_table(key, table, claims)) for key, table in config.tables.items()]
    of_figures = [claim for claim in claims if not _tables_of(claim)]  # no table can test these
    return "\n".join([TABLES, *sections, "## Claims of figures\n", *_claims(of_figures)])


def _table(key: str, table: Table, claims: tuple[Claim, ...]) -> Iterator[str]:
    """One table: what it shows, its rows and columns, what the paper claims of it."""
    yield f"## {table.title}\n"
    yield f"{table.caption}\n"
    yield f"- Key `{key}`: [config/tables/{key}.yaml](../config/tables/{key}.yaml); {_built_by(table)}."
    if isinstance(table, AccuracyTable):
        for kind, entries in {"Rows": table.rows, "Columns": table.columns}.items():
            named = [f"{entry.label} (`{entry.key}`)" for entry in entries]
            if table.gain and table.gain.along == kind.lower():
                named.append(f"{table.gain.label} (`{table.gain.key}`)")
            yield f"- {kind}: {', '.join(named)}."
    else:
        yield f"- Rows: {', '.join(f'{entry.label} (`{entry.key}`)' for entry in table.rows)}."
    yield ""
    yield from _claims([claim for claim in claims if key in _tables_of(claim)])


def _built_by(table: Table) -> str:
    if isinstance(table, CostTable):
        return "counted, nothing is trained"
    if not isinstance(table, AccuracyTable):
        return "made from the configuration, nothing is trained"
    return f"built by `snakemake{' grid' if table.target == 'grid' else ''}`"


def _claims(claims: list[Claim]) -> Iterator[str]:
    if not claims:
        return
    yield "| claim | the paper says | where |"
    yield "|---|---|---|"
    for claim in claims:
        note = f" ({claim.note.rstrip('.')})" if claim.note else ""
        yield f"| `{claim.key}` | {claim.says}{note} | {claim.where} |"
    yield ""


def _tables_of(claim: Claim) -> set[str]:
    return {cell.split("/")[0] for cell in named_cells(claim).values()}


def command_page() -> str:
    """The text of docs/command.md."""
    parser = make_parser()
    # argparse has no public list of its commands.
    (commands,) = [entry for entry in parser._actions if isinstance(entry, argparse._SubParsersAction)]
    names = ", ".join(f"[{name}](#fbt-{name})" for name in commands.choices)
    parts = [COMMANDS, f"{names}.\n", "Before a command or among its own options:\n"]
    parts += [*_options(parser, SETTINGS), ""]
    for name, command in commands.choices.items():
        parts += [f"## `fbt {name}`\n", f"{command.description}\n"]
        rows = list(_options(command, without=SETTINGS))
        if len(rows) > 2:
            parts += [*rows, ""]
        parts += [f"    {(command.epilog or '').removeprefix('example: ')}\n"]
    return "\n".join(parts)


def _options(parser: argparse.ArgumentParser, only: str = "", without: str = "") -> Iterator[str]:
    """A table of the options of one group, or of all groups but one."""
    yield "| option | |"
    yield "|---|---|"
    for group in parser._action_groups:
        if group.title == without or only not in ("", group.title):
            continue
        for action in group._group_actions:
            if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
                yield f"| {_usage(action)} | {_help(action)} |"


def _usage(action: argparse.Action) -> str:
    """An option as it is written: `--to FILE`, `RUN`, `[TABLE ...]`."""
    value = str(action.metavar or ("CHOICE" if action.choices else action.dest.upper())).replace("|", "\\|")
    shown = {"*": f"[{value} ...]", "+": f"{value} [{value} ...]"}.get(str(action.nargs), value)
    if not action.option_strings:
        return f"`{shown}`"
    name = action.option_strings[-1]
    return f"`{name}`" if action.nargs == 0 else f"`{name} {shown}`"


def _help(action: argparse.Action) -> str:
    """What the option is for, what it may be, and what it is if it is not given."""
    said = action.help or ""
    parts = [said, ", ".join(map(str, action.choices or ()))]
    if action.required and action.option_strings:
        parts.append("needed")
    elif action.default not in (None, False, [], argparse.SUPPRESS) and "default" not in said:
        parts.append(f"default: {action.default}")
    return "; ".join(part for part in parts if part).replace("|", "\\|")


PAGES = {"tables.md": tables_page, "command.md": command_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        write_text(DOCS / name, page())
        print(DOCS / name)
