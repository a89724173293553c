"""Released teachers: fetched from a local server by the same code, checked, converted, measured, refused."""

import argparse
import hashlib
import http.server
import json
import re
import threading

import pytest
import torch
import yaml

from fbt_core import teachers
from fbt_core.errors import UserError
from fbt_core.run import main as train
from fbt_core.teachers import Job, download, fetch_teacher, main
from fbt_core.weights import read_weights
from fbt_paper.cli import main as fbt
from fbt_paper.config.load import ConfigError, load
from fbt_paper.config.teachers import released_teachers
from tests.test_core.engine_runs import arguments, make_spec, metrics_of, write_images


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`; `cut` ends the next answer early, `ranges` says whether it continues a download."""

    files: dict[str, bytes] = {}
    cut: int | None = None
    ranges = True
    asked: list[str | None] = []

    def do_GET(self):
        content, asked = self.files[self.path], self.headers.get("Range")
        self.asked.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop, type(self).cut = self.cut, None
        self.wfile.write(content[start : len(content) if stop is None else start + stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name, value in (("files", {}), ("cut", None), ("ranges", True), ("asked", [])):
        monkeypatch.setattr(Server, name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small network that was trained on squares, as a training script's checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    root, spec = write_images(folder / "data"), make_spec(recipe__ema_decay=None)
    assert train(arguments(spec, folder / "runs", root)) == 0
    state = read_weights(folder / "runs" / spec.id / "weights.safetensors")
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=1)}, folder / "release.pth")
    return (
        root,
        spec,
        (folder / "release.pth").read_bytes(),
        metrics_of(folder / "runs", spec)["best"]["top1"],
    )


def make_job(trained, server, tmp_path, **changes):
    root, spec, content, top1 = trained
    Server.files["/release.pth"] = content
    known = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "top1": top1}
    job = {
        "name": "resnet18", "url": f"{server}/release.pth", **known, "network": spec.student,
        "dataset": spec.dataset, "test_crop": None, "data_roots": {"squares": str(root)},
        "to": str(tmp_path / "teachers"), "accept": False, "device": "cpu", **changes,
    }  # fmt: skip
    return Job.model_validate(job)


def test_a_teacher_is_fetched_converted_and_measured_as_the_engine_measures(
    trained, server, tmp_path, capsys
):
    job = make_job(trained, server, tmp_path)
    (tmp_path / "jobs.json").write_text(json.dumps({"jobs": [job.model_dump(mode="json")]}))
    assert main([str(tmp_path / "jobs.json")]) == 0
    printed = capsys.readouterr().out
    assert f"resnet18: top-1 {trained[3]:.2f} % (stated {trained[3]:.2f} %)" in printed
    lines = yaml.safe_load(printed.partition("for config/config.yaml:\n")[2])
    entry = lines["teacher_files"]["squares"]["resnet18"]
    weights = tmp_path / "teachers" / "resnet18.safetensors"
    assert entry == {"path": str(weights), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    record = json.loads(weights.with_suffix(".json").read_text())
    assert record["measured_top1"] == pytest.approx(trained[3]) and record["note"] is None
    assert Server.asked == [None]
    fetch_teacher(job)
    assert Server.asked == [None], "what is there is not fetched again"


def test_one_below_its_stated_accuracy_is_refused_or_accepted_on_record(trained, server, tmp_path, capsys):
    folder = tmp_path / "teachers"
    stated = trained[3] + 1.5
    with pytest.raises(UserError, match=f"more than 1 point below the stated {stated:.2f} %; `--accept`"):
        fetch_teacher(make_job(trained, server, tmp_path, top1=stated))
    assert not list(folder.glob("*.safetensors")) and not list(folder.glob("*.json"))
    fetch_teacher(make_job(trained, server, tmp_path, top1=stated, accept=True))
    assert "accepted with --accept" in json.loads((folder / "resnet18.json").read_text())["note"]
    assert "below the stated accuracy: accepted" in capsys.readouterr().out
    fetch_teacher(make_job(trained, server, tmp_path, top1=trained[3] + 0.9))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on(server, tmp_path, ranges):
    content = bytes(range(256)) * 9000
    Server.files["/file"], Server.cut, Server.ranges = content, 1_500_000, ranges
    digest = hashlib.sha256(content).hexdigest()
    target = tmp_path / "file"
    with pytest.raises(UserError, match="of 2,304,000 bytes; run the same command again"):
        download(f"{server}/file", target, len(content), digest)
    assert not target.exists()
    cut = (tmp_path / "file.part").stat().st_size
    assert 0 < cut <= 1_500_000
    download(f"{server}/file", target, len(content), digest)
    assert target.read_bytes() == content and Server.asked == [None, f"bytes={cut}-"]
    assert not (tmp_path / "file.part").exists()


@pytest.mark.parametrize("change", [lambda content: content + b"x" * 100, lambda content: b"y" + content[1:]])
def test_another_file_is_deleted(server, tmp_path, change):
    content = b"x" * 1000
    Server.files["/file"] = change(content)
    with pytest.raises(UserError, match="it is not the released file, and was deleted"):
        download(f"{server}/file", tmp_path / "file", 1000, hashlib.sha256(content).hexdigest())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["http://example.org/a", "file:///etc/passwd", "ftp://example.org/a"])
def test_only_https_is_fetched_and_followed(url, tmp_path):
    with pytest.raises(UserError, match="is not an https address"):
        download(url, tmp_path / "a", 1, "0" * 64)
    with pytest.raises(UserError, match="is not an https address"):
        teachers._Redirects().redirect_request(None, None, 302, "", {}, url)


def test_a_server_that_is_gone_is_said_in_one_line(server, tmp_path):
    with pytest.raises(UserError, match="cannot be fetched"):
        download("http://127.0.0.1:9/a", tmp_path / "a", 1, "0" * 64)


def test_a_checkpoint_that_could_run_code_is_refused(trained, server, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"state_dict": {}, "x": Evil()}, tmp_path / "evil.pth")
    content = (tmp_path / "evil.pth").read_bytes()
    Server.files["/evil.pth"] = content
    job = make_job(trained, server, tmp_path, url=f"{server}/evil.pth", bytes=len(content),
                   sha256=hashlib.sha256(content).hexdigest())  # fmt: skip
    with pytest.raises(UserError, match="refused: it asks for"):
        fetch_teacher(job)


def test_the_command_lists_what_is_known_and_asks_for_the_data_first(capsys, tmp_path):
    assert fbt(["--scale", "paper", "fetch-teachers", "--list"]) == 0
    assert "swin_t: 318 MiB, top-1 89.26 %" in capsys.readouterr().out
    assert fbt(["--scale", "paper", "fetch-teachers", "swin_t", "--to", str(tmp_path / "t")]) == 1
    assert "data_roots.cifar100" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
    config = load(overrides={"scale": "paper"})
    assert set(released_teachers(config.folder, "cifar100")) <= set(config.architectures)
    assert released_teachers(config.folder, "imagenet") == {}


def test_a_wrong_entry_names_its_key(tmp_path):
    (tmp_path / "teachers.yaml").write_text("cifar100: {swin_t: {url: 'http://a/b', bytes: 1, top1: 3.0}}\n")
    with pytest.raises(ConfigError, match=r"cifar100.swin_t"):
        released_teachers(tmp_path, "cifar100")
