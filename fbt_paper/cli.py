"""The command `fbt`: what is planned, what it costs, where it stands, what came out."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fbt_core.errors import UserError
from fbt_core.files import write_text
from fbt_paper.config.load import CONFIG_FOLDER
from fbt_paper.plan.frozen import timm_tags
from fbt_paper.plan.resources import read_resources
from fbt_paper.plan.run_spec import dataset_spec
from fbt_paper.plan.speeds import PRECISIONS
from fbt_paper.plan.targets import Flow

Options = argparse.Namespace
EXAMPLES = """\
The paper on a laptop:     snakemake --cores 2
The paper as published:    snakemake --profile slurm        (see docs/cluster.md: data and a GPU cluster)
One table:                 snakemake --cores 2 results/smoke/tables/table5.md
"""
CELL, OTHER_CELL = "table5/swin_block/swin_t__resnet18", "table5/vit_block/swin_t__resnet18"
GPU_HELP = "the GPU whose speed is assumed: v100, a100 (default), h100, rtx_3090, rtx_4090"
RUN_HELP = "a run's id, a part of it, or its cell: table/row/column"
CELLS_HELP = f"{RUN_HELP}; table/row or table for all of theirs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it did what it says, 1 with one message if something must be fixed."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    # argparse does not ask for a command by itself; a first call should show what there is.
    if not hasattr(options, "command"):
        parser.print_help()
        return 0
    try:
        command: Callable[[Options], int] = options.command
        return command(options)
    # The reader of a pipe, e.g. `head`, has seen enough; that is no error.
    except BrokenPipeError:
        return 0
    # Nothing else: a bug of ours must show its traceback, not look like a mistake of the user.
    except UserError as error:
        print(f"fbt: {error}", file=sys.stderr)
        return 1


# ---------------------------------------------------------------- commands


def plan_command(options: Options) -> int:
    """Per table: cells, runs, runs shared with other tables, estimated training cost."""
    # Imported by each command for itself: planning must not wait for pandas and matplotlib.
    from fbt_paper.config.problems import Collector
    from fbt_paper.plan.claims import ClaimPlan
    from fbt_paper.plan.decisions import Decisions, render_cells, render_decisions
    from fbt_paper.plan.figures import FigurePlan
    from fbt_paper.plan.show import align, render_packs, render_plan, render_runs
    from fbt_paper.plan.speeds import speeds_for

    # Figures and claims look up runs and cells in the plan; what they do not find is reported here.
    flow, collect = open_flow(options), Collector()
    collect.try_(FigurePlan, flow)
    collect.try_(ClaimPlan, flow)
    collect.finish()
    tables = choose(options.tables, flow.plan.tables, "table")
    if options.claims:
        print_claims(flow, tables)
    elif options.runs:
        print(render_runs(flow.plan, tables))
    else:
        cores = options.cores_per_gpu or flow.threads
        speeds = speeds_for(Path(flow.results), options.gpu, cores, options.tflops)
        asked = Decisions(options.gpus, options.budget, options.price)
        if options.cells:
            print(align(render_cells(flow, tables, speeds, asked)))
        else:
            packs = render_packs(flow, tables, speeds)
            print(render_plan(flow.plan, tables, speeds), packs, sep="\n")
            print(render_decisions(flow, tables, speeds, asked))
    return 0


def print_claims(flow: Flow, tables: Sequence[str]) -> None:
    """Per claim of these tables: what the planned seeds and test images can show."""
    from fbt_paper.claims.power import NOTE, plan_claims, render
    from fbt_paper.config.claims import named_cells
    from fbt_paper.plan.claims import ClaimPlan
    from fbt_paper.plan.show import align

    claims = ClaimPlan(flow)
    chosen = [
        claim
        for claim in claims.claims
        if {cell.split("/")[0] for cell in named_cells(claim).values()} <= set(tables)
    ]
    print(f"scale {flow.scale}\n\n{align(render(plan_claims(claims, chosen)))}\n\n{NOTE}")


def spec_command(options: Options) -> int:
    """Print everything that can change a run's number, as JSON."""
    flow = open_flow(options)
    run = find_run(flow, options.run)
    print(json.dumps(flow.spec(run).model_dump(mode="json"), indent=2))
    return 0


def recipe_command(options: Options) -> int:
    """Print a recipe: every value a training of this dataset and family takes, and the file it is from."""
    from fbt_paper.plan.show import render_recipe

    flow = open_flow(options)
    choose([options.dataset], flow.config.datasets, "dataset")
    choose([options.family], ["cnn", "msa", "mlp", "teacher"], "family")
    print(render_recipe(flow.config, options.dataset, options.family))
    return 0


def check_data_command(options: Options) -> int:
    """Report whether a dataset is in place and whole; with --out leave the answer in a file."""
    from fbt_paper.config.data_roots import find_root

    flow = open_flow(options)
    # First whether the folder is there: reading all files of a large data set takes long.
    root = find_root(flow.config, options.dataset)
    where = str(root) if root else "shipped with the package"
    if not options.quick and not check_files(flow, options.dataset, root):
        return 1
    print(f"{options.dataset}: in place ({where})")
    if options.out:
        write_text(options.out, json.dumps({"dataset": options.dataset, "folder": where}) + "\n")
    return 0


def build_table_command(options: Options) -> int:
    """Write one table as CSV, Markdown and LaTeX; --no-paper: beside these, without the printed numbers."""
    from fbt_paper.tables.results import collect_tables
    from fbt_paper.tables.write import write_table

    flow = open_flow(options)
    (table,) = collect_tables(flow, choose([options.table], flow.plan.tables, "table"))
    folder = Path(flow.results, "tables_no_paper" if options.no_paper else "tables")
    for path in write_table(table, folder, paper=not options.no_paper):
        print(path)
    return 0


def collect_results_command(options: Options) -> int:
    """Write all results as one tidy CSV: a row per table, row, column and seed."""
    from fbt_paper.tables.frame import as_csv
    from fbt_paper.tables.results import collect_tables, tidy

    flow = open_flow(options)
    tables = choose(options.tables or flow.plan.all_tables, flow.plan.tables, "table")
    path = options.out or Path(flow.results, "results.csv")
    write_text(path, as_csv(tidy(collect_tables(flow, tables))))
    print(path)
    return 0


def compare_command(options: Options) -> int:
    """Write every cell as ours | paper | gap."""
    from fbt_paper.tables.compare import to_markdown
    from fbt_paper.tables.results import collect_tables

    flow = open_flow(options)
    path = options.out or Path(flow.results, f"{options.comparison}.md")
    write_text(
        path, to_markdown(collect_tables(flow, flow.compared(options.comparison)), flow.config.scale_label)
    )
    print(path)
    return 0


def judge_claims_command(options: Options) -> int:
    """Write what the results say of each claim of the paper: holds, contradicted or undecided."""
    from fbt_paper.claims.write import write_claims

    flow = open_flow(options)
    for path in write_claims(flow, options.claims, Path(flow.results)):
        print(path)
    return 0


def status_command(options: Options) -> int:
    """Where every run of every table stands, read from files; exit code 1 if one has failed."""
    from fbt_paper.status.commands import show_status

    watch = options.every if options.watch else None
    return show_status(open_flow(options), options.tables, options.runs, watch, options.json)


def show_command(options: Options) -> int:
    """One run: its spec, epochs and result."""
    from fbt_paper.status.commands import show_run

    return show_run(open_flow(options), options.run)


def diff_command(options: Options) -> int:
    """What differs between two runs: settings, scores."""
    from fbt_paper.status.commands import show_difference

    return show_difference(open_flow(options), options.first, options.second)


def table_command(options: Options) -> int:
    """Print a table whose runs are done."""
    from fbt_paper.status.show_table import print_table

    flow = open_flow(options)
    for name in choose(options.tables, flow.plan.tables, "table"):
        print_table(flow, name)
    return 0


def run_command(options: Options) -> int:
    """Train what tables, rows or cells need and rebuild what shows them; a bar instead of Snakemake's log."""
    from fbt_paper.status.run_workflow import run_workflow

    flow = open_flow(options)
    if flow.config.folder.absolute() != Path("config").absolute():
        hint = "call it from the folder that holds Snakefile and config/ (`fbt init FOLDER` makes one)"
        raise UserError("Snakemake reads ./config only", where=str(flow.config.folder), hint=hint)
    how = ["--cores", str(options.cores)]
    if options.profile:
        how = ["--profile", options.profile]
    return run_workflow(flow, options.cells, how)


def draw_command(options: Options) -> int:
    """Draw one figure into the files named: pdf=FILE png=FILE csv=FILE ..."""
    from fbt_paper.figures.draw import draw
    from fbt_paper.plan.figures import FigurePlan

    figures = FigurePlan(open_flow(options))
    (name,) = choose([options.figure], figures.drawings, "figure")
    files = dict(text.split("=", 1) for text in options.files if "=" in text)
    if len(files) < max(1, len(options.files)):
        whole = f"`snakemake --cores 1 {figures.folder}/{name}.png` makes all of its files"
        raise UserError(
            f"takes each file as KEY=FILE, e.g. png={name}.png; {whole}", where=f"fbt draw {name}"
        )
    for path in draw(figures, name, {key: Path(file) for key, file in files.items()}, options.style):
        print(path)
    return 0


def build_page_command(options: Options) -> int:
    """Write the results page: one file with every table, figure and run; --partial: while runs go on."""
    from fbt_paper.page.build import write_page
    from fbt_paper.partial import write_partial

    if options.partial:
        for path in write_partial(open_flow(options), options.page):
            print(path)
        return 0
    print(write_page(open_flow(options), options.page, options.figures, options.claims))
    return 0


def fetch_weights_command(options: Options) -> int:
    """Download the timm weights that the plan's teachers start from (for nodes without a network)."""
    flow = open_flow(options)
    tags = timm_tags(flow.plan.runs.values())
    if not tags:
        print(f"scale {flow.scale} needs no downloaded weights")
        return 0
    if options.list:
        print("\n".join(tags))
        return 0
    # A process of its own, here and below: fbt_paper never imports torch.
    return subprocess.run([sys.executable, "-m", "fbt_core.weights", "fetch", *tags], check=False).returncode


def fetch_teachers_command(options: Options) -> int:
    """Fetch released teachers, take their tensors, measure them; prints the lines for config.yaml."""
    from fbt_paper.config.data_roots import find_root
    from fbt_paper.config.teachers import released_teachers
    from fbt_paper.plan.run_spec import network_spec, test_crop_of

    flow = open_flow(options)
    config, data = flow.config, options.dataset
    choose([data], config.datasets, "dataset")
    known = released_teachers(config.folder, data)
    if options.list:
        for name, entry in known.items():
            print(f"{name}: {entry.bytes / 2**20:,.0f} MiB, top-1 {entry.top1:.2f} % ({entry.source})")
        return 0
    # The data first: nobody should fetch a gigabyte and then learn that it cannot be measured.
    root = find_root(config, data)
    jobs = []
    for name in choose(options.names, known, "released teacher"):
        crop = test_crop_of(config, name, data)
        job = {
            "name": name,
            **known[name].model_dump(exclude={"source"}),
            "network": network_spec(config, name, data).model_dump(mode="json"),
            "dataset": dataset_spec(config, data).model_dump(mode="json"),
            "test_crop": crop and crop.model_dump(mode="json"),
            "data_roots": {data: str(root)} if root else {},
            "to": str(options.to),
            "accept": options.accept,
        }
        jobs.append(job)
    path = options.to / "jobs.json"
    write_text(path, json.dumps({"jobs": jobs}))
    return subprocess.run([sys.executable, "-m", "fbt_core.teachers", str(path)], check=False).returncode


def export_command(options: Options) -> int:
    """Give a trained student away: weights, a config.json that timm reads, a model card."""
    flow = open_flow(options)
    run = find_run(flow, options.run)
    licence = flow.config.datasets[flow.spec(run).dataset.name].licence or ""
    folder = options.to or Path("exported", run)
    command = ["fbt_core.export", str(Path(flow.runs, run)), "--to", str(folder), "--licence", licence]
    return subprocess.run([sys.executable, "-m", *command], check=False).returncode


def eval_command(options: Options) -> int:
    """Try a trained student on a folder of images: top-1, top-5, each class, or predictions."""
    # A folder that `fbt export` wrote needs no plan, and may lie where there is no configuration.
    source = Path(options.run)
    if not source.is_dir():
        flow = open_flow(options)
        source = Path(flow.runs, find_run(flow, options.run))
    command = ["fbt_core.measure.evaluate", str(source), str(options.images)]
    for name in ("csv", "weights"):
        if getattr(options, name):
            command += [f"--{name}", str(getattr(options, name))]
    return subprocess.run([sys.executable, "-m", *command], check=False).returncode


def bundle_command(options: Options) -> int:
    """Write finished runs as one file that can be merged elsewhere or published (RO-Crate)."""
    from fbt_core.run_files import METRICS_FILE
    from fbt_paper.bundle.write import write_bundle

    flow = open_flow(options)
    tables = [name for name in options.names if name in flow.plan.tables]
    runs = [find_run(flow, name) for name in options.names if name not in tables]
    runs += [run for table in tables for run in flow.plan.tables[table].runs]
    chosen = flow.plan.needed(runs) if options.names else tuple(flow.plan.runs)
    folders = [Path(flow.runs, run) for run in chosen if Path(flow.runs, run, METRICS_FILE).exists()]
    if not folders:
        raise UserError("none of these runs is finished", where=flow.runs, hint="`fbt status` says more")
    size = write_bundle(folders, options.to, flow.scale, not options.without_names, options.licence)
    print(f"{options.to}: {len(folders)} of {len(chosen)} runs, {size / 2**20:.1f} MiB")
    return 0


def merge_command(options: Options) -> int:
    """Add the runs of a bundle to the results here; exit code 1 if one is here already with other bytes."""
    from fbt_paper.bundle.merge import merge_bundle

    flow = open_flow(options)
    merged = merge_bundle(options.bundle, Path(flow.runs), flow.scale)
    known = sum(run in flow.plan.runs for run in (*merged.added, *merged.same))
    print(f"{options.bundle}: {len(merged.added)} runs added, {len(merged.same)} were here already")
    print(f"the plan of scale {flow.scale} shows {known} of them; `snakemake` builds what shows them")
    if not known:
        print("config/ here names none of them: take over the tables, and what they name, that it came from")
    for run, problem in merged.conflicts.items():
        print(f"conflict, nothing changed: {run}: {problem}", file=sys.stderr)
    return 1 if merged.conflicts else 0


def init_command(options: Options) -> int:
    """Make a folder to work in: Snakefile, config, workflow and profiles (a clone is one already)."""
    from fbt_paper.init import write_working_copy

    print(write_working_copy(options.folder))
    return 0


def check_cluster_command(options: Options) -> int:
    """Ask Slurm whether the profile's jobs can run; nothing is submitted."""
    cluster = importlib.import_module("fbt_paper.status.cluster")
    return int(cluster.main(["--profile", str(options.profile), "--scale", options.scale or "paper"]))


def check_machine_command(options: Options) -> int:
    """What this machine offers the plan: GPUs, precisions, cores, disk, loading, memory of each training."""
    from fbt_paper.plan.resources import read_resources
    from fbt_paper.plan.speeds import speeds_for
    from fbt_paper.status.checks import show_checks
    from fbt_paper.status.machine import check_machine

    options.scale = options.scale or "paper"
    flow = open_flow(options, read_resources(options.profile))
    speeds = speeds_for(Path(flow.results), options.gpu, flow.threads, None)
    return show_checks(check_machine(flow, speeds), f"snakemake --profile {options.profile.name}")


def bench_command(options: Options) -> int:
    """Measure a training step and the loaders on this machine, about two minutes; `fbt plan` uses it."""
    from fbt_paper.status.bench import bench, choose_run

    flow = open_flow(options)
    spec = choose_run(flow, options.pair, options.method, options.dataset)
    if options.precision:
        change = {"recipe": spec.recipe.model_copy(update={"precision": options.precision})}
        spec = spec.model_copy(update=change)
    wanted = ["--seconds", str(options.seconds)]
    if options.batch:
        wanted += ["--batch", str(options.batch)]
    print("\n".join(bench(flow, spec, wanted)))
    return 0


# ---------------------------------------------------------------- what several commands do


def open_flow(options: Options, more: Mapping[str, Any] | None = None) -> Flow:
    """The plan for the scale and settings given on the command line, and `more` of a profile's."""
    settings: dict[str, Any] = {**json.loads(options.given), **(more or {})}
    # Those behind the command come last, so that they win over those before it.
    for text in [*options.set, *options.set_here]:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError("must be KEY=VALUE, e.g. recipes=as_printed", where=f"--set {text}")
        try:
            # As YAML, so that a value has the type it would have in config.yaml.
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            hint = "put quotes around a text with brackets or colons"
            raise UserError("the value is not YAML", where=f"--set {text}", hint=hint) from None
    if options.scale:
        settings["scale"] = options.scale
    if options.profile:
        settings.update(read_resources(options.profile))
    return Flow(settings, config_folder(options.config))


def config_folder(named: Path | None) -> Path:
    """The configuration named, or ./config, or that of the clone this package was installed from."""
    if named:
        return named
    for folder in (Path("config"), CONFIG_FOLDER):
        if (folder / "config.yaml").exists():
            return folder
    hint = "make a folder to work in with `fbt init FOLDER`, or call `fbt` from one"
    raise UserError("there is no configuration here", where=str(Path("config").absolute()), hint=hint)


def choose(names: Sequence[str], known: Iterable[str], kind: str) -> list[str]:
    """The names given, all of which must be known; everything if none is given."""
    choices = list(known)
    for name in names:
        if name not in choices:
            raise UserError(f"unknown {kind} '{name}'", given=name, choices=choices)
    return list(names) or choices


def find_run(flow: Flow, name: str) -> str:
    """The run whose id is this or contains it, or that stands behind this cell."""
    from fbt_paper.plan.names import name_cells
    from fbt_paper.status import show

    return show.find_run(name, flow.plan.runs, name_cells(flow.plan))


def check_files(flow: Flow, dataset: str, root: Path | None) -> bool:
    """Read every file of a dataset and print what is found; the engine's loaders do it, with torch."""
    # Imported only here: it imports torch.
    check = importlib.import_module("fbt_core.measure.check_data")
    findings = check.check_data(dataset, dataset_spec(flow.config, dataset), root)
    for finding in findings:
        print(finding)
    return not any(finding.level == "error" for finding in findings)


# ---------------------------------------------------------------- the parser


def make_parser() -> argparse.ArgumentParser:
    """All commands with their help."""
    parser = argparse.ArgumentParser(
        prog="fbt",
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(scale=None, config=None, profile=None, set=[], set_here=[])
    _add_settings(parser, "set")
    parser.add_argument("--given", default="{}", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_plan_commands(commands)
    _add_run_command(commands)
    _add_result_commands(commands)
    _add_weight_commands(commands)
    _add_travel_commands(commands)
    _add_teacher_command(commands)
    _add_machine_commands(commands)
    return parser


def _add_settings(parser: argparse.ArgumentParser, name: str) -> None:
    """The settings of the configuration, which may stand before a command or among its own options.

    `name` keeps the two lists of --set apart: argparse lets the later one replace the earlier one.
    """
    # SUPPRESS: a command's own default would overwrite what was given before the command.
    settings = parser.add_argument_group("settings", argument_default=argparse.SUPPRESS)
    settings.add_argument(
        "--scale", metavar="SCALE", help="instead of config.yaml's: smoke, mini, pilot, paper, or your own"
    )
    settings.add_argument(
        "--config", type=Path, metavar="FOLDER", help="the configuration (default: ./config)"
    )
    settings.add_argument(
        "--set", dest=name, action="append", metavar="KEY=VALUE", help="a key of config.yaml"
    )


def _above_zero(text: str) -> float:
    """A number of the command line that must be above 0."""
    try:
        number = float(text)
    except ValueError:
        # NaN fails the comparison below, so text and wrong numbers share one message.
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0 (given: {text})")
    return number


def _add(
    commands: Any, name: str, command: Callable[[Options], int], example: str
) -> argparse.ArgumentParser:
    text = (command.__doc__ or "").strip()
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=f"example: {example}"
    )
    parser.set_defaults(command=command)
    _add_settings(parser, "set_here")
    return parser


def _add_plan_commands(commands: Any) -> None:
    plan = _add(commands, "plan", plan_command, "fbt --scale paper plan")
    plan.add_argument("tables", nargs="*", metavar="TABLE", help="only these tables")
    plan.add_argument(
        "--claims", action="store_true", help="what the planned seeds can show of each claim of the paper"
    )
    plan.add_argument(
        "--runs", action="store_true", help="list the run ids instead, in an order they can be run"
    )
    plan.add_argument("--cells", action="store_true", help="list the cells instead: runs and hours left")
    plan.add_argument("--gpu", default="a100", metavar="KIND", help=GPU_HELP)
    plan.add_argument("--gpus", type=_above_zero, metavar="N", help="days on so many GPUs at a time")
    plan.add_argument(
        "--budget", type=_above_zero, metavar="HOURS", help="which claims so many GPU hours let one judge"
    )
    plan.add_argument("--price", type=_above_zero, metavar="P", help="of one GPU hour, in any currency")
    plan.add_argument(
        "--tflops", type=_above_zero, help="TFLOP/s that one GPU sustains, whatever the precision"
    )
    plan.add_argument(
        "--cores-per-gpu", type=_above_zero, help="cores that load images for one GPU (default: `workers`)"
    )
    plan.add_argument(
        "--profile", type=Path, metavar="FOLDER", help="the profile whose resources.yaml says GPUs and packs"
    )
    spec = _add(commands, "spec", spec_command, f"fbt spec {CELL}")
    spec.add_argument("run", metavar="RUN", help=RUN_HELP)
    recipe = _add(commands, "recipe", recipe_command, "fbt --scale paper recipe cifar100 cnn")
    recipe.add_argument("dataset", metavar="DATASET")
    recipe.add_argument("family", metavar="FAMILY", help="cnn, msa, mlp, or teacher (fine-tuning)")


def _add_run_command(commands: Any) -> None:
    run = _add(commands, "run", run_command, "fbt run table5/swin_block --cores 2")
    run.add_argument(
        "cells",
        nargs="*",
        metavar="CELL",
        help="table, table/row, table/row/column or a run (default: everything)",
    )
    how = run.add_mutually_exclusive_group()
    how.add_argument("--cores", default=2, metavar="N", help="CPU cores of this machine (default 2)")
    how.add_argument("--profile", metavar="NAME", help="slurm, workstation or your own")


def _add_result_commands(commands: Any) -> None:
    status = _add(commands, "status", status_command, "fbt status table5 --watch")
    status.add_argument("tables", nargs="*", metavar="TABLE", help="only these tables")
    status.add_argument("--runs", action="store_true", help="one line for each run, of all tables")
    status.add_argument("--watch", action="store_true", help="look again and again until all is done")
    status.add_argument(
        "--every", type=_above_zero, default=5.0, metavar="SECONDS", help="how often (default 5)"
    )
    status.add_argument("--json", action="store_true", help="one JSON object, for scripts")
    show = _add(commands, "show", show_command, f"fbt show {CELL}")
    show.add_argument("run", metavar="RUN", help=CELLS_HELP)
    diff = _add(commands, "diff", diff_command, f"fbt diff {CELL} {OTHER_CELL}")
    diff.add_argument("first", metavar="RUN", help=RUN_HELP)
    diff.add_argument("second", metavar="RUN")
    printed = _add(commands, "table", table_command, "fbt table table5")
    printed.add_argument("tables", nargs="+", metavar="TABLE")
    table = _add(commands, "build-table", build_table_command, "fbt build-table table5")
    table.add_argument("table", metavar="TABLE")
    table.add_argument(
        "--no-paper", action="store_true", help="without the printed numbers, into tables_no_paper/"
    )
    claims = _add(commands, "judge-claims", judge_claims_command, "fbt judge-claims claims")
    claims.add_argument("claims", choices=["claims", "claims_grid"], metavar="claims[_grid]")
    results = _add(commands, "collect-results", collect_results_command, "fbt collect-results table5")
    results.add_argument("tables", nargs="*", metavar="TABLE", help="only these tables")
    results.add_argument("--out", type=Path, metavar="FILE")
    figure = _add(commands, "draw", draw_command, "fbt draw figure1 png=figure1.png")
    figure.add_argument("figure", metavar="FIGURE")
    figure.add_argument(
        "--style",
        choices=["page", "paper"],
        default="page",
        help="paper: serif, its caption left to the paper",
    )
    figure.add_argument("files", nargs="*", metavar="KEY=FILE", help="what to write, e.g. png=figure1.png")
    page = _add(commands, "build-page", build_page_command, "fbt build-page index")
    page.add_argument("page", choices=["index", "grid"])
    page.add_argument(
        "--figures", nargs="*", type=Path, default=[], metavar="FILE", help="what describes them"
    )
    page.add_argument(
        "--partial",
        action="store_true",
        help="with unfinished and failed runs as they stand; tables, comparison and claims as well",
    )
    page.add_argument("--claims", type=Path, metavar="FILE", help="the verdicts that the page begins with")
    compare = _add(commands, "compare", compare_command, "fbt compare comparison")
    compare.add_argument("comparison", choices=["comparison", "comparison_grid"], metavar="comparison[_grid]")
    compare.add_argument("--out", type=Path, metavar="FILE")


def _add_weight_commands(commands: Any) -> None:
    export = _add(commands, "export", export_command, f"fbt export {CELL} --to my-student")
    export.add_argument("run", metavar="RUN", help=RUN_HELP)
    export.add_argument("--to", type=Path, metavar="FOLDER", help="a new folder (default: exported/RUN)")
    evaluate = _add(commands, "eval", eval_command, f"fbt eval {CELL} photographs/")
    evaluate.add_argument("run", metavar="RUN", help=f"{RUN_HELP}; or a folder that `fbt export` wrote")
    evaluate.add_argument(
        "images", type=Path, metavar="FOLDER", help="FOLDER/CLASS/*, or FOLDER/* without labels"
    )
    evaluate.add_argument("--weights", type=Path, metavar="FILE", help="other weights of the same network")
    evaluate.add_argument("--csv", type=Path, metavar="FILE", help="accuracy by class, or the predictions")


def _add_teacher_command(commands: Any) -> None:
    teachers = _add(
        commands, "fetch-teachers", fetch_teachers_command, "fbt --scale paper fetch-teachers --list"
    )
    teachers.add_argument("names", nargs="*", metavar="NAME", help="architectures (default: all released)")
    teachers.add_argument("--dataset", default="cifar100", metavar="DATASET", help="default: cifar100")
    teachers.add_argument("--to", type=Path, default=Path("teachers"), metavar="FOLDER")
    teachers.add_argument("--list", action="store_true", help="print what is known, fetch nothing")
    teachers.add_argument(
        "--accept", action="store_true", help="take one that is below its stated accuracy, and record that"
    )


def _add_travel_commands(commands: Any) -> None:
    bundle = _add(commands, "bundle", bundle_command, "fbt bundle table5 --to table5.zip --without-names")
    bundle.add_argument(
        "names", nargs="*", metavar="TABLE|RUN", help="with all they need (default: all that is finished)"
    )
    bundle.add_argument("--to", type=Path, required=True, metavar="FILE", help="a new zip file")
    bundle.add_argument(
        "--without-names", action="store_true", help="leave out hosts, users, job ids and GPU numbers"
    )
    bundle.add_argument("--licence", default="", metavar="URL", help="of the results, for their metadata")
    merge = _add(commands, "merge", merge_command, "fbt merge table5.zip")
    merge.add_argument("bundle", type=Path, metavar="FILE", help="what `fbt bundle` wrote")


def _add_machine_commands(commands: Any) -> None:
    data = _add(commands, "check-data", check_data_command, "fbt check-data fashion_mnist")
    data.add_argument("dataset", metavar="DATASET")
    data.add_argument("--out", type=Path, metavar="FILE")
    data.add_argument("--quick", action="store_true", help="only look whether the folder is there")
    init = _add(commands, "init", init_command, "fbt init my-study")
    init.add_argument("folder", type=Path, metavar="FOLDER")
    cluster = _add(commands, "check-cluster", check_cluster_command, "fbt check-cluster")
    cluster.add_argument("--profile", type=Path, default=Path("profiles/slurm"), metavar="FOLDER")
    machine = _add(commands, "check-machine", check_machine_command, "fbt check-machine")
    machine.add_argument("--profile", type=Path, default=Path("profiles/workstation"), metavar="FOLDER")
    machine.add_argument("--gpu", default="a100", metavar="KIND", help=GPU_HELP)
    bench = _add(commands, "bench", bench_command, "fbt bench --method kd --seconds 10")
    bench.add_argument("--pair", default="swin_t__resnet18", metavar="TEACHER__STUDENT")
    bench.add_argument("--method", default="fbt", metavar="METHOD")
    bench.add_argument("--dataset", metavar="DATASET", help="(default: the first of the plan's that fits)")
    bench.add_argument("--precision", choices=PRECISIONS, help="(default: the recipe's)")
    bench.add_argument("--batch", type=int, help="images of a step (default: the recipe's batch; CPU: 16)")
    bench.add_argument("--seconds", type=_above_zero, default=60.0, help="to repeat the step (default 60)")
    fetch = _add(commands, "fetch-weights", fetch_weights_command, "fbt --scale paper fetch-weights --list")
    fetch.add_argument("--list", action="store_true", help="print the tags, download nothing")


if __name__ == "__main__":
    sys.exit(main())
