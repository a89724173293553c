"""Released teachers: fetch a checkpoint, take its tensors out, and measure it before anything learns from it.

    python -m fbt_core.teachers JOB.json        (`fbt fetch-teachers` writes the job and calls it)

Every step is safe to repeat: a download goes on where it was cut, and what is there already is only checked.
"""

from __future__ import annotations

import contextlib
import http.client
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import nn
from tqdm import tqdm

from fbt_core import distributed
from fbt_core.data.feed import Feed
from fbt_core.data.load import load_splits
from fbt_core.data.order import test_keys
from fbt_core.data.transforms import test_pipeline
from fbt_core.errors import UserError
from fbt_core.files import cannot_write, make_folder, write_json
from fbt_core.provenance import now
from fbt_core.spec import CropSpec, DatasetSpec, ExecutionSettings, NetworkSpec, Strict
from fbt_core.staged import build_network
from fbt_core.weights import convert, file_sha256, fill, read_weights

TOLERANCE = 1.0
"""Points of top-1 that a fetched teacher may lie below what is stated of it."""
PIECE = 2**20
SECONDS = 60.0
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


class Job(Strict):
    """One teacher: where it is, what is stated of it, and the network and images to measure it with."""

    name: str
    url: str
    bytes: int
    sha256: str
    top1: float
    network: NetworkSpec
    dataset: DatasetSpec
    test_crop: CropSpec | None
    data_roots: dict[str, str]
    to: str
    accept: bool
    device: str = "auto"


def fetch_teacher(job: Job) -> str:
    """A teacher as .safetensors in the job's folder, fetched and measured; returns its line for config.yaml.

    Raises UserError, and leaves no weights there, if the file is not the stated one or not as good.
    """
    folder = Path(job.to).expanduser()
    make_folder(folder)
    source, target = folder / Path(urlsplit(job.url).path).name, folder / f"{job.name}.safetensors"
    # Fetched, converted, measured: each step refuses before the next one costs anything.
    download(job.url, source, job.bytes, job.sha256)
    print(convert(source, target))
    try:
        top1 = measure(job, target)
        good = top1 >= job.top1 - TOLERANCE
        if not good and not job.accept:
            hint = "`--accept` takes it all the same, and records that"
            what = f"has top-1 {top1:.2f} %, more than {TOLERANCE:g} point below the stated {job.top1:.2f} %"
            raise UserError(what, where=job.name, hint=hint)
    except UserError:
        # Weights that were refused must not lie where a run would find them.
        target.unlink()
        raise
    record = {"url": job.url, "fetched_sha256": job.sha256, "stated_top1": job.top1, "measured_top1": top1}
    # The file's own digest, because conversion makes another file than was fetched.
    digest = file_sha256(target)
    accepted = None if good else "below the stated accuracy, accepted with --accept"
    write_json(target.with_suffix(".json"), {**record, "sha256": digest, "note": accepted, "measured": now()})
    word = "" if good else ", below the stated accuracy: accepted"
    print(f"{job.name}: top-1 {top1:.2f} % (stated {job.top1:.2f} %){word}")
    return f"{job.name}: {{path: {target.resolve()}, sha256: {digest}}}"


# ---------------------------------------------------------------- fetching


def download(url: str, target: Path, size: int, sha256: str) -> None:
    """A file of this size and sha256, from where an earlier attempt was cut; UserError for another one."""
    # Size first: hashing a part of a large file would take minutes for nothing.
    if target.exists() and target.stat().st_size == size and file_sha256(target) == sha256:
        return
    check_address(url)
    # Under another name until it is whole: nobody takes a part for the teacher.
    part = target.with_name(target.name + ".part")
    try:
        _continue(url, part, size)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        hint = "run the same command again: it goes on where it was cut"
        raise UserError(f"cannot be fetched ({error})", where=url, hint=hint) from None
    except OSError as error:
        raise cannot_write(part, error) from None
    got = part.stat().st_size
    if got < size:
        hint = "run the same command again: it goes on where it was cut"
        raise UserError(f"the connection ended after {got:,} of {size:,} bytes", where=url, hint=hint)
    # Read back from the disk: what was written is what counts.
    digest = file_sha256(part)
    if got != size or digest != sha256:
        part.unlink()
        what = f"{got:,} bytes with sha256 {digest}, expected {size:,} with {sha256}"
        raise UserError(what, where=url, hint="it is not the released file, and was deleted")
    part.replace(target)


def check_address(url: str) -> None:
    """Refuse all but https: nobody on the way may read or change the file. This machine may serve itself."""
    address = urlsplit(url)
    if address.scheme != "https" and not (address.scheme == "http" and address.hostname in THIS_MACHINE):
        raise UserError("is not an https address", where=url)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to https only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _continue(url: str, part: Path, size: int) -> None:
    """Add to the part what it lacks; a server that cannot continue sends all again."""
    have = part.stat().st_size if part.exists() else 0
    if have >= size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    opener = urllib.request.build_opener(_Redirects)
    with opener.open(request, timeout=SECONDS) as answer:
        # A server may ignore the range and send all: then the part is begun anew.
        continues = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        have = have if continues else 0
        with part.open("ab" if continues else "wb") as file:
            bar = tqdm(total=size, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None)
            with bar, contextlib.suppress(http.client.IncompleteRead):
                # One byte more than stated shows that it is another file.
                while have <= size and (piece := answer.read(min(PIECE, size + 1 - have))):
                    file.write(piece)
                    have += len(piece)
                    bar.update(len(piece))


# ---------------------------------------------------------------- measuring


@torch.no_grad()
def measure(job: Job, weights: Path) -> float:
    """Top-1 in percent of the weights on the data set's test images."""
    settings = ExecutionSettings(device=job.device, data_roots=job.data_roots)  # type: ignore[arg-type]
    device = distributed.choose_device(settings)
    network: nn.Module = build_network(job.network, job.dataset.classes, job.dataset.image_size)
    fill(network, read_weights(weights), where=str(weights), new_head=False)
    network.eval().to(device)
    # Test images alone: accuracy is what was stated of the teacher.
    test = load_splits(job.dataset, job.data_roots)[1]
    feed = Feed(test, test_pipeline(test, job.dataset, job.test_crop), workers=0, device=device)
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (job.network.mean, job.network.std)
    )
    keys = test_keys(len(test), 64)
    right = 0
    for raw in tqdm(feed(keys), total=len(keys), desc=f"{job.name}: top-1", disable=None):
        images = ((raw.images.expand(-1, 3, -1, -1) - mean) / std).to(device)
        right += int((network(images).argmax(1).cpu() == raw.labels).sum())
    return 100 * right / len(test)


def main(arguments: list[str] | None = None) -> int:
    """The command line: one JSON file with a list of jobs."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    lines, failed = {}, 0
    for job in Jobs.model_validate_json(Path(path).read_text()).jobs:
        try:
            lines.setdefault(job.dataset.name, []).append(fetch_teacher(job))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = error.exit_code
    if lines:
        print("\nfor config/config.yaml:\n\nteacher_files:")
        for dataset, entries in lines.items():
            print("\n    ".join([f"  {dataset}:", *entries]))
    return failed


class Jobs(Strict):
    """All that one call is to fetch."""

    jobs: tuple[Job, ...]


if __name__ == "__main__":
    sys.exit(main())
