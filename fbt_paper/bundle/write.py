"""`fbt bundle`: finished runs as one zip file, with RO-Crate metadata so that archives can show it."""

from __future__ import annotations

import getpass
import importlib.metadata
import json
import shutil
import socket
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from fbt_core.errors import UserError
from fbt_core.files import make_folder, write_file
from fbt_core.run_files import METRICS_FILE, WEIGHTS_FILE
from fbt_paper.bundle.runs import ORIGIN_FILE, TravellingRun, as_json, check_run, sha256_of, without_names

CRATE_FILE = "ro-crate-metadata.json"
CRATE = "https://w3id.org/ro/crate/1.1"
KINDS = {".json": "application/json", ".jsonl": "application/jsonl", ".npz": "application/zip"}
READABLE = 0o644 << 16


def write_bundle(runs: Sequence[Path], to: Path, scale: str, names: bool = True, licence: str = "") -> int:
    """Write these finished runs as a new zip file; returns its size in bytes.

    `names` False leaves out hosts, users, jobs and devices. A run that fails a check is a UserError.
    """
    if to.exists():
        raise UserError("exists, and nothing is overwritten", where=str(to), hint="name a new file with --to")
    checked = {folder: check_run(folder) for folder in runs}
    changed = {} if names else {folder: _nameless_files(folder) for folder in runs}
    make_folder(to.parent)

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            crate = describe(checked, changed, scale, names, licence)
            archive.writestr(_entry(CRATE_FILE), as_json(crate))
            for folder, run in checked.items():
                for name in run.files:
                    _add(archive, folder / name, changed.get(folder, {}).get(name))

    write_file(to, write)
    return to.stat().st_size


def _nameless_files(folder: Path) -> dict[str, bytes]:
    """The files of a run that may hold names, without them."""
    paths = [folder / name for name in (METRICS_FILE, ORIGIN_FILE) if (folder / name).is_file()]
    return {path.name: as_json(without_names(json.loads(path.read_text()))) for path in paths}


def _entry(name: str) -> zipfile.ZipInfo:
    """A file of the archive: always the same time, so that the same content makes the same bytes."""
    entry = zipfile.ZipInfo(name)
    # Weights hardly shrink, and unpacked they are read where they lie.
    if not name.endswith(WEIGHTS_FILE):
        entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = READABLE
    return entry


def _add(archive: zipfile.ZipFile, path: Path, content: bytes | None) -> None:
    entry = _entry(f"runs/{path.parent.name}/{path.name}")
    if content is not None:
        archive.writestr(entry, content)
        return
    with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
        shutil.copyfileobj(source, target)


# ---------------------------------------------------------------- metadata


def describe(
    runs: Mapping[Path, TravellingRun],
    changed: Mapping[Path, Mapping[str, bytes]],
    scale: str,
    names: bool,
    licence: str,
) -> dict[str, Any]:
    """The RO-Crate metadata (version 1.1): the archive, its runs, each file with size and sha256."""
    parts = [entity for folder, run in runs.items() for entity in _run(folder, run, changed.get(folder, {}))]
    root: dict[str, Any] = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"{len(runs)} trainings of FBT-Repro, scale {scale}",
        "description": "Finished trainings: settings, scores by epoch, predictions and weights. "
        "`fbt merge FILE` checks them and adds them to other results.",
        "datePublished": datetime.now(UTC).isoformat(timespec="seconds"),
        "keywords": ["knowledge distillation", f"scale:{scale}"],
        "hasPart": [{"@id": part["@id"]} for part in parts if part["@type"] == "Dataset"],
        "creator": {"@id": "#fbt-repro"},
    }
    if licence:
        root["license"] = licence
    if names:
        root["author"] = {"@id": "#author"}
        parts.append(
            {"@id": "#author", "@type": "Person", "name": f"{getpass.getuser()}@{socket.gethostname()}"}
        )
    version = importlib.metadata.version("fbt-repro")
    about = {"@id": CRATE_FILE, "@type": "CreativeWork", "conformsTo": {"@id": CRATE}, "about": {"@id": "./"}}
    maker = {"@id": "#fbt-repro", "@type": "SoftwareApplication", "name": "fbt-repro", "version": version}
    # The vocabulary of version 1.1 lacks schema.org's sha256; it is stated, as the standard asks.
    context = [f"{CRATE}/context", {"sha256": "https://schema.org/sha256"}]
    return {"@context": context, "@graph": [about, root, maker, *parts]}


def _run(folder: Path, run: TravellingRun, changed: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
    """A run and its files. The run's own digest leaves names out; that of a file is of the file as it is."""
    names = [f"runs/{folder.name}/{name}" for name in run.files]
    yield {
        "@id": f"runs/{folder.name}/",
        "@type": "Dataset",
        "name": folder.name,
        "sha256": run.digest,
        "hasPart": [{"@id": name} for name in names],
    }
    for name, path in zip(run.files, names, strict=True):
        if name in changed:
            size, digest = len(changed[name]), sha256_of(changed[name])
        else:
            size, digest = (folder / name).stat().st_size, run.files[name]
        yield {
            "@id": path,
            "@type": "File",
            "name": name,
            "contentSize": str(size),
            "sha256": digest,
            "encodingFormat": KINDS.get(Path(name).suffix, "application/octet-stream"),
        }
