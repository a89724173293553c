"""The journal as other programs read it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from snakemake_executor_plugin_submitit.journal import Journal, read_jobs
from snakemake_executor_plugin_submitit.record import JobRecord

from fakes import make_entry


def test_jobs_are_read_with_what_they_noted_themselves(tmp_path: Path) -> None:
    """No controller has followed the first job to its end; the second was followed, and failed later."""
    journal = Journal(tmp_path / "journal")
    left = make_entry(tmp_path, key="left", state="RUNNING", submitted=9.0)
    record = JobRecord(submitted=9.0)
    record.start("n1", "7")
    record.start("n2", "7")
    record.end(0)
    record.save(Path(left.record))
    followed = make_entry(tmp_path, key="followed", state="TIMEOUT", submitted=5.0)
    for entry in (left, followed):
        journal.write(entry)
    (tmp_path / "journal" / "half.json").write_text('{"key": ')
    (tmp_path / "journal" / "other.json").write_text('{"key": "x"}')
    jobs = read_jobs(tmp_path)
    assert [(job.key, job.state) for job in jobs] == [("followed", "TIMEOUT"), ("left", "COMPLETED")]
    assert (jobs[1].restarts, jobs[1].node) == (1, "n2")
    assert journal.read("left") == left, "reading writes nothing"


def test_no_folder_no_jobs(tmp_path: Path) -> None:
    assert read_jobs(tmp_path / "nowhere") == []
    assert not (tmp_path / "nowhere").exists()


def test_reading_jobs_needs_no_snakemake() -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from snakemake_executor_plugin_submitit.journal import read_jobs\nread_jobs(Path('nowhere'))\n"
        "print({name.partition('.')[0] for name in sys.modules} & {'snakemake', 'submitit', 'psutil'})"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
