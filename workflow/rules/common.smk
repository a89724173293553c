# The plan as files. FLOW answers every question the rules have (fbt_paper/plan/targets.py).
from pathlib import Path

from fbt_paper.plan.targets import Flow

FLOW = Flow(config, Path("config"))


wildcard_constraints:
    run="[a-z0-9_]+(-[a-z0-9_]+)*-[0-9a-f]{10}",
    table="[a-z][a-z0-9_]*",
    comparison="comparison|comparison_grid",


localrules:
    all,
    tables,
    grid,
    build_table,
    collect_results,
    fetch_weights,
    compare_with_paper,
