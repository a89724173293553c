"""Run ids: the same settings give the same id, any other setting another one."""

import copy
import json
import re
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fbt_core.spec import ID_PATTERN, RunSpec, parse_spec
from fbt_paper.config.load import load
from fbt_paper.plan.runs import Plan, plan
from tests.golden.run_ids import FILE, planned_ids
from tests.test_paper.config_copy import ConfigCopy


@cache
def whole(scale: str) -> Plan:
    return plan(load(overrides={"scale": scale}))


PLAN = whole("paper")
RUNS = sorted(PLAN.runs)
LITERALS = {
    "loader": ["cifar100", "image_folder", "fashion_mnist"],
    "family": ["cnn", "msa", "mlp"],
    "no_decay": ["one_dimensional", "network_list", "ofa_repository"],
    "precision": ["float32", "tf32", "bfloat16", "float16"],
    "interpolation": ["bilinear", "bicubic"],
    "teacher_normalisation": ["own", "student"],
    "update": ["epoch", "step"],
}
NAMES = {"optimizer": ["sgd", "adamw"], "schedule": ["cosine", "step"]}


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_the_plan_still_has_the_run_ids_it_had(scale):
    expected = json.loads(FILE.read_text())[scale]
    planned = planned_ids(scale)
    gone = {key: sorted(set(runs) - set(planned.get(key, []))) for key, runs in expected.items()}
    gone = {key: runs for key, runs in gone.items() if runs}  # runs that were added are no matter
    assert not gone, f"these would be trained again under other ids; if that is meant: {FILE.stem}.py --write"


def test_ids_are_readable_and_safe_in_shells_and_paths():
    assert all(ID_PATTERN.fullmatch(run) for run in RUNS)
    assert all(re.fullmatch(r"[a-z0-9_-]+", run) for run in RUNS)


def leaves(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a spec's JSON."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content)
    paths = []
    for key, value in pairs:
        nested = isinstance(value, dict | list) and value
        paths += leaves(value, (*path, key)) if nested else [(*path, key)]
    return paths


def other(value: Any, path: tuple[Any, ...], draw: Any) -> Any:
    """Another value that the field may hold."""
    name = path[-1]
    if value == {}:
        return {"added": 1}
    if name == "name" and path[-2] in NAMES:
        return next(choice for choice in NAMES[path[-2]] if choice != value)
    if name in LITERALS:
        return draw(st.sampled_from([choice for choice in LITERALS[name] if choice != value]))
    if isinstance(value, bool):
        return not value
    if name == "rand_augment":
        return "rand-m8"
    if name == "warmup_epochs":
        return value - 1
    if isinstance(value, int):
        return value + draw(st.integers(1, 1000))
    if isinstance(value, float):
        return value / 2 if value > 0 else 0.5
    return "other" if path[:1] != ("teacher",) or name != "weights" else "run:other"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_field_of_the_spec_changes_the_id(data):
    spec = PLAN.runs[data.draw(st.sampled_from(RUNS))]
    content = json.loads(spec.canonical_json())
    path = data.draw(st.sampled_from(leaves(content)))
    changed = copy.deepcopy(content)
    inner = changed
    for part in path[:-1]:
        inner = inner[part]
    value = other(inner[path[-1]], path, data.draw)
    inner[path[-1]] = value
    full = json.loads(spec.model_dump_json())
    merged = merge(full, changed)
    merged["recipe"]["optimizer"]["momentum"] = merged["recipe"]["optimizer"]["momentum"] or 0.9
    for key, filler in (("milestones", [30]), ("factor", 0.1)):
        merged["recipe"]["schedule"][key] = merged["recipe"]["schedule"][key] or filler
    assert parse_spec(json.dumps(merged)).id != spec.id


def merge(full: Any, changed: Any) -> Any:
    """`changed` with the None values that the canonical JSON leaves out."""
    if not (isinstance(full, dict) and isinstance(changed, dict)):
        return changed
    return {
        key: merge(full.get(key), changed[key]) if key in changed else full[key]
        for key in {**full, **changed}
    }


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_key_order_and_number_style_do_not_change_the_id(data):
    spec = PLAN.runs[data.draw(st.sampled_from(RUNS))]
    content = json.loads(spec.model_dump_json())
    keys = data.draw(st.permutations(list(content)))
    assert parse_spec(json.dumps({key: content[key] for key in keys}, indent=3)).id == spec.id


@settings(max_examples=50, deadline=None)
@given(run=st.sampled_from(RUNS), seed=st.integers(0, 10**6))
def test_different_seeds_are_different_runs(run, seed):
    spec: RunSpec = PLAN.runs[run]
    same = spec.model_copy(update={"seed": seed})
    assert (same.id == run) == (seed == spec.seed)


HARMLESS = {
    "a label": ("tables/table5.yaml", "label: ViT Block", "label: The ViT's block"),
    "a row's key": (
        "tables/cifar100.yaml",
        "key: scratch, label: Scratch",
        "key: scratch, label: From scratch",
    ),
    "a caption": ("tables/table5.yaml", "caption: FBT", "caption: Our FBT"),
    "a comment": ("scales/smoke.yaml", "# Scale smoke", "# At scale smoke"),
    "a printed number": ("tables/table5.reference.csv", "81.05", "81.06"),
    "the number of workers": ("config.yaml", "workers: 8", "workers: 7"),
    "the device": ("config.yaml", "device: auto", "device: cpu"),
    "a data root": ("config.yaml", "cifar100: null", "cifar100: /data/cifar100"),
    "a dataset's title": ("datasets.yaml", "title: CIFAR-100", "title: CIFAR 100"),
    "an architecture's title": ("architectures.yaml", "title: Swin-T", "title: Swin Tiny"),
    "a citation": ("methods.yaml", 'source: "docs/paper-facts.md#objective;', 'source: "the appendix;'),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_cannot_change_a_number_changes_no_id(what, tmp_path):
    edited = ConfigCopy(tmp_path)
    edited.replace(*HARMLESS[what])
    for scale in ("smoke", "paper"):
        assert edited.plan(scale).runs.keys() == whole(scale).runs.keys()


REVISIONS = {
    "ENGINE_REVISION": lambda run: True,
    "FUSION_REVISION": lambda run: run.method.name == "fbt",
}


@pytest.mark.parametrize("name", REVISIONS)
def test_a_raised_revision_retrains_its_runs_and_those_that_need_them(name, monkeypatch):
    import fbt_paper.plan.run_spec as module

    before = plan(load())
    monkeypatch.setattr(module, name, getattr(module, name) + 1)
    after = plan(load())
    changed = {run for run, spec in before.runs.items() if REVISIONS[name](spec)}
    changed |= {run for run, spec in before.runs.items() if set(spec.needed_runs()) & changed}
    assert set(before.runs) - set(after.runs) == changed
    assert len(after.runs) == len(before.runs)


def test_a_parameter_added_later_changes_no_id_at_the_value_from_before(tmp_path, monkeypatch):
    """`before` is what the method did until then; any other value is another run."""
    import fbt_paper.config.parameters as module

    def ids(value: float) -> set[str]:
        edited = ConfigCopy(tmp_path / str(value))
        monkeypatch.setattr(module, "FILE", edited.path("methods.yaml"))
        added = f'    warmth: {{value: {value}, minimum: 0, before: 0.0, source: "a test"}}\n'
        edited.replace("methods.yaml", "\nfitnet:\n", f"{added}\nfitnet:\n")  # the last parameter of kd
        return set(edited.plan("paper").runs)

    kd = {run for run, spec in PLAN.runs.items() if spec.method.name == "kd"}
    assert ids(0.0) == set(PLAN.runs)
    assert kd and not ids(0.5) & kd


def test_the_canonical_json_of_a_method_is_as_it_was():
    """Golden: KD's part of a spec that was planned before any method had a parameter with `before`."""
    spec = next(spec for spec in PLAN.runs.values() if spec.method.name == "kd")
    method = json.dumps(json.loads(spec.canonical_json())["method"], sort_keys=True)
    parameters = '{"label_weight": 1.0, "logit_weight": 1.0, "temperature": 1.0}'
    assert method == f'{{"name": "kd", "parameters": {parameters}, "revision": 1}}'
