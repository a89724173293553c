"""`fbt merge`: the runs of a bundle join those that are here, each after it has passed every check.

A run that is not here is added; one that is here already is compared and never changed. Everything is
unpacked and checked before the first run is added, and a run is added whole, by renaming its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fbt_core.errors import UserError
from fbt_core.files import cannot_write, make_folder, write_json
from fbt_core.run_files import METRICS_FILE, printable
from fbt_core.spec import ID_PATTERN
from fbt_paper.bundle.runs import LARGEST, MIB, NEEDED, ORIGIN_FILE, TravellingRun, check_run, file_sha256
from fbt_paper.bundle.write import CRATE_FILE

NAME = re.compile(r"runs/([a-z0-9_-]{1,200})/([a-z.]+)")
MOST_RUNS = 20_000
PIECE = MIB


@dataclass
class Merged:
    """What became of a bundle's runs; `conflicts` says of each what differs."""

    added: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    conflicts: dict[str, str] = field(default_factory=dict)


def merge_bundle(bundle: Path, runs: Path, scale: str) -> Merged:
    """Add a bundle's runs to the folder of all runs; a UserError adds nothing: the bundle is not sound."""
    make_folder(runs)
    try:
        with (
            zipfile.ZipFile(bundle) as archive,
            tempfile.TemporaryDirectory(dir=runs, prefix=".merge-") as at,
        ):
            entries = check_entries(archive, bundle)
            crate = read_crate(archive, bundle)
            _check_scale(crate, scale, bundle)
            _check_space(archive, runs)
            _unpack(archive, entries, crate, Path(at), bundle)
            checked = _check_runs(entries, Path(at), bundle)
            _check_digests(checked, crate, bundle)
            return _add_runs(checked, Path(at), runs, _origin(crate, bundle))
    except FileNotFoundError:
        raise UserError("is not there", where=str(bundle)) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"is no whole bundle ({error})", where=str(bundle)) from None
    except OSError as error:
        raise cannot_write(runs, error) from None


# ---------------------------------------------------------------- what the archive says


def check_entries(archive: zipfile.ZipFile, bundle: Path) -> dict[str, list[str]]:
    """The names of each run's files; refuses whatever a bundle does not hold, before anything is unpacked."""
    runs: dict[str, list[str]] = {}
    for entry in archive.infolist():
        if entry.filename == CRATE_FILE and entry.file_size <= LARGEST[METRICS_FILE]:
            continue
        named = NAME.fullmatch(entry.filename)
        run, name = named.groups() if named else ("", "")
        # Links, encrypted files and a second file of one name are refused like names that lead out.
        odd = stat.S_ISLNK(entry.external_attr >> 16) or entry.flag_bits & 1 or name in runs.get(run, ())
        if not ID_PATTERN.fullmatch(run) or name not in LARGEST or odd:
            shown = f"'{printable(entry.filename[:100])}'"
            hint = "nothing was unpacked; only `fbt bundle` writes files that can be merged"
            raise UserError(f"holds {shown}, which is in no bundle", where=str(bundle), hint=hint)
        if entry.file_size > LARGEST[name]:
            limit = LARGEST[name] // MIB
            what = f"'{entry.filename}' has {entry.file_size:,} bytes; at most {limit} MiB are taken in"
            raise UserError(what, where=str(bundle))
        runs.setdefault(run, []).append(name)
    if not runs or len(runs) > MOST_RUNS:
        raise UserError(f"holds {len(runs)} runs, not 1 to {MOST_RUNS}", where=str(bundle))
    return runs


def read_crate(archive: zipfile.ZipFile, bundle: Path) -> dict[str, dict[str, Any]]:
    """The entities of the RO-Crate metadata by their @id."""
    try:
        entities = json.loads(archive.read(CRATE_FILE))["@graph"]
        return {entity["@id"]: entity for entity in entities}
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"has no readable {CRATE_FILE}", where=str(bundle)) from None


def _check_scale(crate: Mapping[str, Any], scale: str, bundle: Path) -> None:
    """A bundle joins results of its own scale: under another one no table would look for its runs."""
    words = crate.get("./", {}).get("keywords") or []
    named = [str(word).removeprefix("scale:") for word in words if str(word).startswith("scale:")]
    if named and scale not in named:
        hint = f"fbt --scale {named[0]} merge {bundle}"
        raise UserError(f"is of scale {named[0]}, not {scale}", where=str(bundle), hint=hint)


def _check_space(archive: zipfile.ZipFile, runs: Path) -> None:
    needed, free = sum(entry.file_size for entry in archive.infolist()), shutil.disk_usage(runs).free
    if needed > free:
        raise UserError(f"{needed:,} bytes are needed and {free:,} are free", where=str(runs))


def _unpack(
    archive: zipfile.ZipFile,
    entries: Mapping[str, Sequence[str]],
    crate: Mapping[str, Any],
    at: Path,
    bundle: Path,
) -> None:
    """Every file into a folder of its run, with the sha256 that the metadata states."""
    for run, names in entries.items():
        make_folder(at / run)
        for name in names:
            path = f"runs/{run}/{name}"
            with archive.open(path) as source:
                digest = _copy(source, at / run / name)
            if digest != crate.get(path, {}).get("sha256"):
                what = f"'{path}' has sha256 {digest}, which its metadata does not state"
                raise UserError(what, where=str(bundle), hint="the file was changed or cut; fetch it again")


def _copy(source: Any, target: Path) -> str:
    """Copy in pieces; the sha256 (hex) of what was copied. zipfile stops at the size that was checked."""
    digest = hashlib.sha256()
    with target.open("xb") as file:
        while piece := source.read(PIECE):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _check_runs(runs: Iterable[str], at: Path, bundle: Path) -> dict[str, TravellingRun]:
    """Every unpacked run, checked; a fault is one of the bundle, not of the folder it was unpacked into."""
    try:
        return {run: check_run(at / run) for run in runs}
    except UserError as error:
        inside = str(error.where).removeprefix(f"{at}/")
        raise UserError(f"{inside}: {error.what}", where=str(bundle)) from None


def _check_digests(checked: Mapping[str, TravellingRun], crate: Mapping[str, Any], bundle: Path) -> None:
    for run, content in checked.items():
        stated = crate.get(f"runs/{run}/", {}).get("sha256")
        if stated != content.digest:
            raise UserError(
                f"states {stated} for {run}, whose files give {content.digest}", where=str(bundle)
            )


def _origin(crate: Mapping[str, Any], bundle: Path) -> dict[str, Any]:
    """Where merged runs come from: bundle, its sha256, its date, who wrote it (None without names)."""
    author = crate.get("#author", {}).get("name")
    user, _, host = str(author).partition("@") if author else (None, "", None)
    return {
        "bundle": bundle.name,
        "sha256": file_sha256(bundle),
        "written": crate.get("./", {}).get("datePublished"),
        "user": user,
        "host": host,
        "merged": datetime.now(UTC).isoformat(timespec="seconds"),
    }


# ---------------------------------------------------------------- what is here


def _add_runs(
    checked: Mapping[str, TravellingRun], at: Path, runs: Path, origin: Mapping[str, Any]
) -> Merged:
    """Add what is not here. The origin that a run brings along is kept inside the new one."""
    merged = Merged()
    for run, theirs in checked.items():
        here = runs / run
        if here.exists():
            problem = _compare(here, theirs)
            if problem:
                merged.conflicts[run] = problem
            else:
                merged.same.append(run)
            continue
        before = at / run / ORIGIN_FILE
        known = json.loads(before.read_text()) if before.is_file() else None
        write_json(at / run / ORIGIN_FILE, {**origin, "before": known})
        # A folder that another process has made meanwhile is not empty: renaming fails, nothing is lost.
        os.rename(at / run, here)
        merged.added.append(run)
    return merged


def _compare(here: Path, theirs: TravellingRun) -> str:
    """What speaks against taking the bundle's run for the one here; empty if they are the same."""
    if not all((here / name).is_file() for name in NEEDED):
        return "begun here and not finished; delete its folder to take the bundle's, or let it finish"
    try:
        mine = check_run(here)
    except UserError as error:
        return f"the run here is not sound: {error}"
    return "; ".join(mine.differences(theirs))
