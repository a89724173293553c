"""Which runs form a pack: what they share, that no pack waits for itself, and what a change on disk moves."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from fbt_core.packs import Ending, check_together, write_marker
from fbt_core.run_files import METRICS_FILE, WEIGHTS_FILE
from fbt_core.spec import RunSpec
from fbt_paper.cli import main
from fbt_paper.config.problems import ConfigError
from fbt_paper.plan import packs
from fbt_paper.plan.bill import estimate, in_packs, read_macs, read_training_macs
from fbt_paper.plan.frozen import is_training_job, runs_of_job
from fbt_paper.plan.packs import PackFiles, compose, find_packing
from fbt_paper.plan.resources import check_resources
from fbt_paper.plan.targets import Flow

ROOT = Path(__file__).resolve().parents[2]


def flow_of(scale: str, size: int = 8, **settings) -> Flow:
    return Flow({"scale": scale, "execution": {"pack": size}, **settings})


@pytest.fixture(scope="module", params=["smoke", "paper"])
def flow(request) -> Flow:
    return flow_of(request.param)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def composed(flow: Flow) -> list[tuple[str, ...]]:
    return compose(flow.plan.runs, flow.plan.runs, flow.kind, flow.fits)


def finish(flow: Flow, runs, folder: str = "") -> None:
    """Leave results of these runs."""
    for run in runs:
        where = Path(flow.runs, run, folder)
        where.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS_FILE, METRICS_FILE):
            (where / name).write_text("{}")


# ---------------------------------------------------------------- composition


def test_a_packs_runs_may_share_it_and_wait_for_the_same(flow):
    together = composed(flow)
    assert len({run for pack in together for run in pack}) == sum(map(len, together))
    for pack in together:
        specs = [flow.plan.runs[run] for run in pack]
        check_together(specs)
        assert 1 < len(specs) <= 8
        # Whatever part of it is asked for: the pack waits for nothing that this part does not need.
        assert len({(spec.needed_runs(), spec.student.weights) for spec in specs}) == 1


def test_no_pack_waits_for_itself(flow):
    """Packs and single runs can be trained one after the other: chains (TAKD, MTPD) and teachers included."""
    jobs = {run: pack for pack in composed(flow) for run in pack}
    waiting = {jobs.get(run, (run,)) for run in flow.plan.runs}
    done: set[str] = set()
    while waiting:
        able = {
            job for job in waiting if all(done.issuperset(flow.plan.runs[run].needed_runs()) for run in job)
        }
        assert able, waiting
        done.update(run for job in able for run in job)
        waiting -= able


def test_a_teacher_without_one_of_its_own_trains_alone(flow):
    needed = {other for spec in flow.plan.runs.values() for other in spec.needed_runs()}
    packed = {run for pack in composed(flow) for run in pack}
    assert not {run for run in packed & needed if flow.plan.runs[run].teacher is None}
    alone = {run for run, spec in flow.plan.runs.items() if spec.teacher is None and run not in needed}
    assert alone & packed, "students from scratch go together"


def test_each_pack_but_the_last_of_a_teacher_is_full(flow):
    teacher = lambda pack: next(flow.plan.runs[run].teacher for run in pack if flow.plan.runs[run].teacher)  # noqa: E731
    taught = [pack for pack in composed(flow) if any(flow.plan.runs[run].teacher for run in pack)]
    for first, second in pairwise(taught):
        specs = [flow.plan.runs[run] for run in (*first, *second)]
        try:
            check_together(specs)
        except Exception:
            continue
        if teacher(first) == teacher(second) and len({spec.needed_runs() for spec in specs}) == 1:
            assert len(first) == 8


def test_gpus_and_sizes_differ_between_packs_not_within():
    amount = {"gpus": 1, "hours": 1, "memory": 2, "cpus": 1}
    families = {"cnn": amount, "msa": amount | {"gpus": 2}, "mlp": amount | {"gpus": 2, "pack": 3}}
    table = {"datasets": {"fashion_mnist": families}, "otherwise": amount}
    flow = flow_of("smoke", 4, training_resources=table)
    together = composed(flow)
    for pack in together:
        kinds = {flow.plan.runs[run].student.family for run in pack}
        assert len(kinds) == 1
        assert len(pack) <= (3 if kinds == {"mlp"} else 4)
    assert max(map(len, together)) == 4


def test_the_bill_of_the_paper_in_packs_of_eight_is_less_than_two_thirds():
    flow = flow_of("paper")
    specs, counts = flow.plan.runs, (read_macs(), read_training_macs())
    separate = estimate(specs.values(), *counts).pflops
    together = composed(flow)
    packed = {run for pack in together for run in pack}
    jobs = [*together, *((run,) for run in specs if run not in packed)]
    assert 0.5 < in_packs([[specs[run] for run in job] for job in jobs], *counts).pflops / separate <= 0.65
    assert in_packs([[spec] for spec in specs.values()], *counts).pflops == pytest.approx(separate)


def test_fbt_plan_says_what_packs_save_with_and_without_them(capsys):
    profile = str(ROOT / "profiles/slurm")
    assert main(["--scale", "paper", "plan", "table5", "--profile", profile]) == 0
    assert "In packs of up to 8 runs (not set: `execution: pack`" in capsys.readouterr().out
    assert main(["--scale", "paper", "--set", "execution={pack: 2}", "plan", "table5"]) == 0
    text = capsys.readouterr().out
    assert "In packs:\n3 packs and 3 runs alone" in text
    assert re.search(r"PFLOPs, 0\.[89]\d of the above; [\d,]+ to [\d,]+ GPU hours", text)


def test_a_pack_pays_one_pass_of_its_teacher_and_loads_its_images_once():
    flow = flow_of("paper")
    (taught, other, *_), *_ = composed(flow)
    runs = [flow.plan.runs[run] for run in (taught, other)]
    macs, teacher = {"resnet18": 10, runs[0].teacher.architecture: 50}, 50
    alone = [in_packs([[run]], macs, {}) for run in runs]
    both = in_packs([runs], macs, {})
    scale = 2 * runs[0].recipe.epochs * runs[0].dataset.train_images * (runs[0].dataset.image_size / 224) ** 2
    assert both.pflops == pytest.approx(alone[0].pflops + alone[1].pflops - scale * teacher / 1e15)
    assert both.costs[0].images == alone[0].costs[0].images


def test_auto_fills_half_a_gpu_with_what_runs_keep_from_step_to_step():
    tables = {gb: {**RESOURCES, "gpu_memory": gb} for gb in (2.0, 24.0)}
    flows = {gb: flow_of("paper", "auto", training_resources=table) for gb, table in tables.items()}
    largest = {}
    for gb, flow in flows.items():
        together = composed(flow)
        for pack in together:
            kept = [flow.state_gb(flow.plan.runs[run]) for run in pack]
            assert sum(kept) <= gb / 2 and len(kept) <= 16
        largest[gb] = max(map(len, together))
    assert largest[2.0] < largest[24.0] == 16
    with pytest.raises(ConfigError, match="gpu_memory"):
        composed(flow_of("paper", "auto", training_resources=RESOURCES))


def test_auto_on_a_cpu_fills_half_of_a_trainings_main_memory():
    """Scale smoke needs no GPU, and so nobody has to say how much memory one has."""
    largest = {}
    for gb in (0.5, 2.0):
        flow = flow_of(
            "smoke", "auto", training_resources={"datasets": {}, "otherwise": CPU_ONLY | {"memory": gb}}
        )
        together = composed(flow)
        assert all(sum(flow.state_gb(flow.plan.runs[run]) for run in pack) <= gb / 2 for pack in together)
        largest[gb] = max(map(len, together))
    assert 1 < largest[0.5] < largest[2.0] <= 16
    assert composed(flow_of("smoke", "auto"))


def test_what_a_run_keeps_is_counted():
    """ResNet18 with KD and SGD's momentum: weights, gradients, momentum; CRD's banks come on top."""
    flow = flow_of("paper", training_resources=RESOURCES)
    runs = {}
    for spec in flow.plan.runs.values():
        if spec.student.architecture == "resnet18" and spec.dataset.name == "cifar100" and spec.teacher:
            runs.setdefault(spec.method.name, spec)
    kd, crd, fbt = (flow.state_gb(runs[name]) for name in ("kd", "crd", "fbt"))
    assert runs["kd"].recipe.optimizer.name == "sgd" and runs["kd"].recipe.ema_decay is None
    assert kd == pytest.approx(3 * 4 * 11_689_512 / 1e9)
    assert crd > kd + 4 * 4 * 50_000 * 128 / 1e9 - 1e-9 and fbt == pytest.approx(2 * kd)
    unknown = runs["kd"].student.model_copy(update={"architecture": "new"})
    assert flow.state_gb(runs["kd"].model_copy(update={"student": unknown})) is None


# ---------------------------------------------------------------- on disk


def test_complete_runs_are_in_no_pack_and_ready_ones_are_published(here):
    flow = flow_of("smoke")
    first = next(iter(flow.packing.packs.values()))
    finish(flow, first[:2])
    finish(flow, first[2:4], "ready")
    packing = flow_of("smoke").packing
    packed = {run for pack in packing.packs.values() for run in pack}
    assert not packed & set(first[:4])
    assert packing.ready == set(first[2:4])
    assert set(first[2:4]) <= set(packing.published) and not set(first[:2]) & set(packing.published)


def test_a_submitted_pack_keeps_its_runs_and_an_added_row_moves_nothing(here):
    flow = flow_of("smoke")
    before = flow.packing.packs
    for pack, members in before.items():
        flow.packs.record(pack, members)
    # As if rows were added anywhere: runs that the recorded plan did not hold, in another order.
    removed = set(random.Random(0).sample([run for pack in before.values() for run in pack], 20))
    for pack, members in before.items():
        flow.packs.record(pack, [run for run in members if run not in removed])
    specs = dict(reversed(flow.plan.runs.items()))
    after = find_packing(specs, flow.packs, Path(flow.runs), flow.kind, flow.fits).packs
    for pack, members in before.items():
        left = tuple(run for run in members if run not in removed)
        assert after.get(pack, left) == left or len(left) < 2
    added = {run for pack, members in after.items() if pack not in before for run in members}
    # Runs that were alone before may share a pack with an added one, as long as they are in no queue.
    moved = {run for members in before.values() if len(set(members) - removed) > 1 for run in members}
    assert added and not added & (moved - removed)


def test_a_pack_that_is_now_too_large_is_cut_unless_its_job_runs(here, monkeypatch):
    flow = flow_of("smoke")
    pack, members = next(iter(flow.packing.packs.items()))
    flow.packs.record(pack, members)
    assert pack in flow_of("smoke").packing.packs
    assert pack not in flow_of("smoke", 4).packing.packs
    monkeypatch.setattr(packs, "queued_outputs", lambda: {flow.packs.marker(pack)})
    finish(flow, members[:1])
    assert flow_of("smoke", 1).packing.packs == {pack: members}


def test_a_run_that_failed_in_a_pack_is_in_no_other(here):
    flow = flow_of("smoke")
    pack, members = next(iter(flow.packing.packs.items()))
    flow.packs.record(pack, members)
    endings = {run: Ending("failed", "no") if run == members[0] else Ending("ready") for run in members}
    write_marker(Path(flow.packs.marker(pack)), endings)
    packing = flow_of("smoke").packing
    packed = {run for runs in packing.packs.values() for run in runs}
    assert members[0] not in packed
    assert set(members[1:]) <= packed, "their results were deleted: they may share a pack again"
    assert pack not in packing.packs


def test_a_second_pack_of_the_same_runs_has_another_marker(here):
    files = PackFiles("packs")
    first = files.new_id(["a", "b"])
    assert first == files.new_id(["a", "b"]) != files.new_id(["b", "a"])
    write_marker(Path(files.marker(first)), {"a": Ending("ready")})
    assert files.new_id(["a", "b"]) != first


def test_jobs_in_a_queue_are_found_in_the_journal(here):
    pytest.importorskip("snakemake_executor_plugin_submitit")
    from snakemake_executor_plugin_submitit.journal import Journal, JournalEntry

    files = PackFiles("results/smoke/packs")
    journal = Journal(packs.JOURNAL / "journal")
    for key, state in (("aa", "PENDING"), ("bb", "FAILED")):
        journal.write(
            JournalEntry(
                key, f"pack pack={key}", "pack", {"pack": key}, [files.marker(key)], "slurm", "t", "s",
                f"{key}.json", 1.0, state=state,
            )
        )  # fmt: skip
    assert packs.queued_outputs() == {files.marker("aa")}


def test_a_run_whose_own_job_waits_or_runs_gets_into_no_pack(here, monkeypatch):
    flow = flow_of("smoke")
    members = next(iter(flow.packing.packs.values()))
    monkeypatch.setattr(packs, "queued_outputs", lambda: {f"{flow.runs}/{members[1]}/{METRICS_FILE}"})
    assert members[1] not in {run for runs in flow_of("smoke").packing.packs.values() for run in runs}


# ---------------------------------------------------------------- jobs


def job(rule: str, **wildcards: str) -> SimpleNamespace:
    return SimpleNamespace(rule=SimpleNamespace(name=rule), wildcards=SimpleNamespace(**wildcards))


def test_a_pack_trains_what_is_asked_for_and_its_job_finds_the_same(here):
    flow = flow_of("smoke")
    pack, members = next((p, m) for p, m in flow.packing.packs.items() if len(m) == 8)
    needed = next(flow.plan.runs[run].needed_runs() for run in members)
    jobs = [job("publish", run=run) for run in members[:3]] + [job("pack", pack=pack)]
    flow.dag = lambda: SimpleNamespace(needrun_jobs=lambda exclude_finished=True: iter(jobs))
    assert flow.members(pack) == members[:3]
    flow.prepare(iter(jobs))
    on_node = runs_of_job("smoke")
    assert on_node.members(pack) == members[:3]
    files = {f"{flow.runs}/{run}/{name}" for run in needed for name in (METRICS_FILE, WEIGHTS_FILE)}
    assert set(on_node.needed_by_pack(pack)) == files
    assert all(Path(path).exists() for path in on_node.specs_of_pack(pack).split()[1::2])
    assert on_node.resources_of_pack(pack) == flow.resources_of_pack(pack)


@pytest.mark.parametrize(
    ("targets", "gpus"), [(["train:run=a"], 4), (["pack:pack=0a"], 4), (["train:run=a", "train:run=b"], 1)]
)
def test_a_job_trains_on_the_gpus_it_was_given_whatever_a_later_call_has_written(here, targets, gpus):
    flow = flow_of("paper", training_resources=RESOURCES)
    spec = next(iter(flow.plan.runs.values()))
    flow.freeze([spec])
    arguments = ["--target-jobs", *targets, "--mode", "remote"]
    on_node = runs_of_job("paper", arguments, {"SNAKEMAKE_SUBMITIT_GPUS": "4"})
    assert on_node.resources_of(spec.id)["gpu"] == gpus
    assert runs_of_job("paper", arguments).resources_of(spec.id)["gpu"] == 1


@pytest.mark.parametrize(
    ("targets", "expected"),
    [(["pack:pack=0a"], True), (["train:run=a", "pack:pack=0a"], True), (["publish:run=a"], False)],
)
def test_the_job_of_a_pack_reads_nothing_of_the_configuration(targets, expected):
    assert is_training_job(["--target-jobs", *targets, "--mode", "remote"]) is expected


def test_a_pack_gets_what_its_largest_run_gets_and_more_time_to_save():
    flow = flow_of("paper", training_resources=RESOURCES)
    specs: list[RunSpec] = [spec for spec in flow.plan.runs.values() if spec.dataset.name == "cifar100"]
    of = flow.resources.of_pack
    alone, eight = of(specs[:1]), of(specs[:8])
    assert alone["mem_mb"] == 32000 and 32000 < eight["mem_mb"] < 2 * 32000
    assert (alone["gpu"], alone["runtime"], alone["cpus"]) == (eight["gpu"], eight["runtime"], eight["cpus"])
    assert 120 <= alone["signal_seconds"] < eight["signal_seconds"]


CPU_ONLY = {"gpus": 0, "hours": 1, "memory": 2, "cpus": 1}
AMOUNT = {"gpus": 1, "hours": 24, "memory": 32, "cpus": 8}
RESOURCES = {
    "datasets": {"cifar100": dict.fromkeys(("cnn", "msa", "mlp"), AMOUNT)},
    "otherwise": AMOUNT,
}


@pytest.mark.parametrize("size", [0, "many", 1.5])
def test_a_wrong_size_is_reported(size):
    with pytest.raises(ConfigError, match=r"execution\.pack"):
        flow_of("smoke", size)
    table = json.loads(json.dumps(RESOURCES))
    table["otherwise"]["pack"] = size
    with pytest.raises(ConfigError, match=r"otherwise\.pack"):
        check_resources(table, ["cifar100"])
