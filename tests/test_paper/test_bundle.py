"""Results travel: bundles join by id, verified, never overwritten; what is no bundle is refused whole."""

import getpass
import hashlib
import io
import json
import pickle
import re
import shlex
import socket
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from fbt_core.errors import UserError
from fbt_core.run_files import read_json
from fbt_paper.bundle import merge as merging
from fbt_paper.bundle.merge import merge_bundle
from fbt_paper.bundle.runs import check_run
from fbt_paper.bundle.write import CRATE_FILE, write_bundle
from fbt_paper.cli import main, make_parser
from fbt_paper.plan.targets import Flow
from tests.test_paper.made_up_results import make_spec, write_run
from tests.test_workflow.workflow_copy import WorkflowCopy

ROOT = Path(__file__).parents[2]
NAMED = {"host": "gpu-node-7", "user": "lovelace", "job_id": "4711", "cuda_visible_devices": "GPU-8d2f"}


def publish(runs: Path, spec, top1=80.0, **metrics) -> Path:
    """A finished run as the engine leaves it: weights, predictions and metrics that state each other."""
    folder = write_run(runs, spec, top1)
    images, content = spec.dataset.test_images, json.loads((folder / "metrics.json").read_text())
    weights = save({"fc.weight": np.full((2, 3), top1, dtype=np.float32)})
    (folder / "weights.safetensors").write_bytes(weights)
    right = np.arange(images) < round(images * content["best"]["top1"] / 100)
    labels = np.ones(images, dtype=np.uint8)
    predicted = right.astype(np.uint8)
    np.savez_compressed(folder / "predictions.npz", best=predicted, last=predicted, labels=labels)
    content["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    content["execution"] |= NAMED
    (folder / "metrics.json").write_text(json.dumps(content | metrics))
    (folder / "last.pt").write_bytes(pickle.dumps("a checkpoint"))
    return folder


@pytest.fixture
def bundle(tmp_path):
    """A bundle of two runs, and the folder of all runs that they come from."""
    runs = tmp_path / "theirs"
    folders = [publish(runs, make_spec(seed=seed)) for seed in (0, 1)]
    write_bundle(folders, tmp_path / "b.zip", "smoke")
    return tmp_path / "b.zip", runs


def changed(bundle: Path, change) -> Path:
    """A copy of a bundle in which `change` may alter a dict of names to bytes."""
    target = bundle.with_name("changed.zip")
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(target, "w") as new:
        files = {name: old.read(name) for name in old.namelist()}
        change(files)
        for name, content in files.items():
            new.writestr(name, content)
    return target


def test_runs_join_by_id_and_a_second_time_nothing_happens(bundle, tmp_path):
    path, theirs = bundle
    mine = tmp_path / "mine"
    first, second = merge_bundle(path, mine, "smoke"), merge_bundle(path, mine, "smoke")
    ids = sorted(folder.name for folder in theirs.iterdir())
    assert (sorted(first.added), sorted(second.same), second.added) == (ids, ids, [])
    assert sorted(folder.name for folder in mine.iterdir()) == ids
    for run in ids:
        names = {file.name for file in (mine / run).iterdir()}
        assert names == {"spec.json", "metrics.json", "history.jsonl", "weights.safetensors",
                         "predictions.npz", "origin.json"}  # fmt: skip
        for name in names - {"origin.json"}:
            assert (mine / run / name).read_bytes() == (theirs / run / name).read_bytes()
        origin = read_json(mine / run / "origin.json")
        assert (origin["bundle"], origin["user"], origin["before"]) == ("b.zip", getpass.getuser(), None)
        assert origin["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_where_a_run_comes_from_is_kept_on_its_next_journey(bundle, tmp_path):
    merge_bundle(bundle[0], tmp_path / "second", "smoke")
    write_bundle(sorted((tmp_path / "second").iterdir()), tmp_path / "c.zip", "smoke", names=False)
    merged = merge_bundle(tmp_path / "c.zip", tmp_path / "third", "smoke")
    origin = read_json(tmp_path / "third" / merged.added[0] / "origin.json")
    assert (origin["bundle"], origin["user"], origin["host"]) == ("c.zip", None, None)
    assert (origin["before"]["bundle"], origin["before"]["user"]) == ("b.zip", None)


def test_without_names_none_is_left_and_the_run_is_still_the_same_run(bundle, tmp_path):
    path, theirs = bundle
    write_bundle(sorted(theirs.iterdir()), tmp_path / "nameless.zip", "smoke", names=False)
    with zipfile.ZipFile(tmp_path / "nameless.zip") as archive:
        text = b"".join(map(archive.read, archive.namelist())).decode(errors="replace")
    for name in (*NAMED.values(), socket.gethostname()):
        assert name not in text
    assert "#author" not in text
    digests = []
    for file in (path, tmp_path / "nameless.zip"):
        with zipfile.ZipFile(file) as archive:
            crate = merging.read_crate(archive, file)
        digests.append({name: part["sha256"] for name, part in crate.items() if name.startswith("runs/")
                        and part["@type"] == "Dataset"})  # fmt: skip
    assert digests[0] == digests[1] and len(digests[0]) == 2
    merge_bundle(path, tmp_path / "mine", "smoke")
    assert len(merge_bundle(tmp_path / "nameless.zip", tmp_path / "mine", "smoke").same) == 2


def test_the_same_id_with_other_bytes_is_a_conflict_that_is_shown(bundle, tmp_path):
    other = publish(tmp_path / "mine", make_spec(seed=0), top1=70.0)
    before = {file.name: file.read_bytes() for file in other.iterdir()}
    merged = merge_bundle(bundle[0], tmp_path / "mine", "smoke")
    assert list(merged.conflicts) == [other.name] and len(merged.added) == 1
    problem = merged.conflicts[other.name]
    assert "metrics.json (best top-1 69.45 here, 79.45 there)" in problem and "weights.safetensors" in problem
    assert {file.name: file.read_bytes() for file in other.iterdir()} == before


def test_a_run_that_is_begun_here_is_left_alone(bundle, tmp_path):
    folder = tmp_path / "mine" / make_spec(seed=0).id
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"a checkpoint")
    merged = merge_bundle(bundle[0], tmp_path / "mine", "smoke")
    assert "begun here and not finished" in merged.conflicts[folder.name]
    assert [file.name for file in folder.iterdir()] == ["last.pt"]


def run_of(files, name):
    """The entry of the first run's file of this name."""
    return next(path for path in files if path.endswith(f"/{name}"))


def state_again(files):
    """Metadata that states the sha256 of every file as it is now: a forger would do so too."""
    crate = json.loads(files[CRATE_FILE])
    for entity in crate["@graph"]:
        if entity["@id"] in files:
            entity["sha256"] = hashlib.sha256(files[entity["@id"]]).hexdigest()
    files[CRATE_FILE] = json.dumps(crate).encode()


def cut_weights(files):
    path = run_of(files, "weights.safetensors")
    files[path] = files[path][:-1]


def forge(name, act):
    """A change of one file of the first run, with metadata that states its new sha256."""

    def change(files):
        path = run_of(files, name)
        files[path] = act(files[path])
        state_again(files)

    return change


def edit(**values):
    """A change of keys of a JSON object."""
    return lambda content: json.dumps(json.loads(content) | values).encode()


def other_score(content):
    metrics = json.loads(content)
    metrics["best"]["top1"] = 99.0
    return json.dumps(metrics).encode()


def other_spec(content):
    spec = json.loads(content)
    spec["recipe"]["epochs"] += 1
    return json.dumps(spec).encode()


def pickled(_):
    file = io.BytesIO()
    np.savez(file, best=np.array([{}], dtype=object), labels=np.ones(1000, np.uint8))
    return file.getvalue()


def add(name, content=b"x"):
    return lambda files: files.update({name: content})


RUN = make_spec(seed=0).id
REFUSED = {
    "a cut file": (cut_weights, "has sha256 .* which its metadata does not state; the file was changed"),
    "a path out": (add("runs/../../x.json"), r"holds 'runs/../../x.json', which is in no bundle"),
    "an absolute path": (add("/tmp/x"), "holds '/tmp/x', which is in no bundle"),
    "a checkpoint": (add(f"runs/{RUN}/last.pt"), "last.pt', which is in no bundle"),
    "a script": (add("setup.py"), "holds 'setup.py'"),
    "an escape sequence": (add("runs/\x1b[2J/spec.json"), r"\\x1b"),
    "a file nobody states": (add(f"runs/{RUN[:-10]}0123456789/spec.json"), "metadata does not state"),
    "no metadata": (lambda files: files.pop(CRATE_FILE), "has no readable ro-crate-metadata.json"),
    "metadata of another kind": (add(CRATE_FILE, b'{"@graph": [1]}'), "has no readable ro-crate"),
    "other weights": (forge("weights.safetensors", lambda content: content + b"x"), "metrics.json names by"),
    "another spec": (forge("spec.json", other_spec), "spec.json is that of another run"),
    "another run": (forge("metrics.json", edit(run="x")), "metrics' `run` is that of another run, x"),
    "no result": (forge("metrics.json", edit(best=None)), "is no run's result"),
    "a score made up": (
        forge("metrics.json", other_score),
        "b.*predictions.npz: its best epoch has top-1 79.40 %, metrics.json states 99.00 %",
    ),
    "another history": (forge("history.jsonl", lambda content: b"{}\n"), "is not the history that metrics"),
    "pickled predictions": (forge("predictions.npz", pickled), "holds no predictions"),
    "a changed device": (forge("metrics.json", edit(parameters=1)), "whose files give"),
    "text for JSON": (forge("metrics.json", lambda content: b"{"), "is no JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_sound_bundle_is_refused_whole(case, bundle, tmp_path):
    change, message = REFUSED[case]
    path = changed(bundle[0], change)
    mine = tmp_path / "mine"
    with pytest.raises(UserError, match=message) as refusal:
        merge_bundle(path, mine, "smoke")
    assert str(refusal.value).startswith(str(path)) and ".merge-" not in str(refusal.value)
    assert list(mine.iterdir()) == []
    assert not (tmp_path / "x.json").exists()


def test_a_link_is_refused(bundle, tmp_path):
    entry = zipfile.ZipInfo(f"runs/{make_spec(seed=2).id}/weights.safetensors")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(bundle[0], "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(UserError, match="which is in no bundle; nothing was unpacked"):
        merge_bundle(bundle[0], tmp_path / "mine", "smoke")


def test_sizes_are_limited_before_anything_is_unpacked(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(merging.LARGEST, "predictions.npz", 10)
    with pytest.raises(UserError, match="at most 0 MiB are taken in"):
        merge_bundle(bundle[0], tmp_path / "mine", "smoke")


def test_a_file_that_is_no_zip_and_one_that_is_not_there(tmp_path):
    (tmp_path / "b.zip").write_bytes(b"PK but no")
    with pytest.raises(UserError, match="is no whole bundle"):
        merge_bundle(tmp_path / "b.zip", tmp_path / "mine", "smoke")
    with pytest.raises(UserError, match="is not there"):
        merge_bundle(tmp_path / "c.zip", tmp_path / "mine", "smoke")


def test_a_bundle_of_another_scale_says_how_it_is_merged(bundle, tmp_path):
    with pytest.raises(UserError, match=r"is of scale smoke, not paper; fbt --scale smoke merge"):
        merge_bundle(bundle[0], tmp_path / "mine", "paper")


def test_only_sound_and_finished_runs_are_bundled_and_no_file_is_overwritten(bundle, tmp_path):
    path, theirs = bundle
    with pytest.raises(UserError, match="exists, and nothing is overwritten"):
        write_bundle([], path, "smoke")
    folder = next(theirs.iterdir())
    (folder / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="is not the file that metrics.json names by sha256"):
        write_bundle([folder], tmp_path / "new.zip", "smoke")
    assert not (tmp_path / "new.zip").exists()


def test_the_metadata_is_an_ro_crate(bundle):
    with zipfile.ZipFile(bundle[0]) as archive:
        crate = json.loads(archive.read(CRATE_FILE))
        entities = {entity["@id"]: entity for entity in crate["@graph"]}
        about = entities["ro-crate-metadata.json"]
        assert about["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
        assert about["about"] == {"@id": "./"} and entities["./"]["@type"] == "Dataset"
        assert {"name", "description", "datePublished"} <= entities["./"].keys()
        files = {name for name, entity in entities.items() if entity["@type"] == "File"}
        assert files == set(archive.namelist()) - {CRATE_FILE}
        listed = {part["@id"] for entity in entities.values() for part in entity.get("hasPart", ())}
        assert listed == {name for name in entities if name.startswith("runs/")}
        for name in files:
            assert int(entities[name]["contentSize"]) == archive.getinfo(name).file_size


@pytest.mark.slow
def test_after_a_merge_the_tables_are_built_and_nothing_is_trained(tmp_path, monkeypatch, capsys):
    """With the real planner and Snakemake: a second folder, in which no run was ever trained."""
    theirs, mine = WorkflowCopy.make(tmp_path / "theirs"), WorkflowCopy.make(tmp_path / "mine")
    assert mine.planned("results/smoke/tables/table5.md")["train"] > 1
    monkeypatch.chdir(theirs.folder)
    flow = Flow({}, theirs.folder / "config")
    for number, run in enumerate(flow.plan.needed(flow.plan.tables["table5"].runs)):
        publish(Path(flow.runs), flow.spec(run), top1=60.0 + number)
    assert main(["bundle", "table5", "--to", str(tmp_path / "t5.zip")]) == 0
    monkeypatch.chdir(mine.folder)
    assert main(["merge", str(tmp_path / "t5.zip")]) == 0
    assert "runs added, 0 were here already" in capsys.readouterr().out
    assert mine.planned("results/smoke/tables/table5.md") == {"build_table": 1}
    done = mine.snakemake("--cores", "1", "results/smoke/tables/table5.md")
    assert done.returncode == 0, done.stdout
    assert not (mine.folder / "results/smoke/runs/trained.txt").exists()
    assert check_run(next((mine.folder / "results/smoke/runs").iterdir())).spec.id in flow.plan.runs
    publish(Path(flow.runs), flow.spec(next(iter(flow.plan.tables["table5"].runs))), top1=50.0)
    assert main(["merge", str(tmp_path / "t5.zip")]) == 1
    assert "conflict, nothing changed" in capsys.readouterr().err


def test_every_command_of_the_document_is_one():
    text = (ROOT / "docs/sharing.md").read_text()
    commands = re.findall(r"^\$ fbt (.*?)(?: *#.*)?$", text, flags=re.M)
    assert len(commands) > 4
    for command in commands:
        make_parser().parse_args(shlex.split(command))
