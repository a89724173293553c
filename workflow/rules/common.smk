# The plan as files. FLOW answers every question the rules have (fbt_paper/plan/targets.py); the job of a training
# has its frozen spec instead and reads nothing of config/ (fbt_paper/plan/frozen.py).
import atexit
import os
import sys
from pathlib import Path

from fbt_paper.plan.failures import explain_failures
from fbt_paper.plan.frozen import Members, is_training_job, runs_of_job
from fbt_paper.plan.targets import Flow

TRAINING_JOB = workflow.remote_exec and is_training_job(sys.argv)
if TRAINING_JOB:
    FLOW = runs_of_job(config["scale"], sys.argv, os.environ)
else:
    FLOW = Flow(config, Path("config"))
FLOW.dag = lambda: workflow.dag


wildcard_constraints:
    run="[a-z0-9_]+(-[a-z0-9_]+)*-[0-9a-f]{10}",
    pack="[0-9a-f]{10}",
    table="[a-z][a-z0-9_]*",
    comparison="comparison|comparison_grid",
