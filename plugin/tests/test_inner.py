"""The inner Snakemake: forked from submitit's process where the script allows it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from snakemake_executor_plugin_submitit.inner import snakemake_arguments, start

HERE = shlex.quote(sys.executable)
PLAIN = f"""\
#!/bin/sh
# properties = {{"type": "single"}}
{HERE} -m snakemake -s 'Snakefile' --cores 'all'  --config 'text="two words; $HOME"' --target-jobs 'a:n=1'
"""


def test_a_plain_script_is_read_as_its_arguments() -> None:
    config = 'text="two words; $HOME"'
    expected = ["-s", "Snakefile", "--cores", "all", "--config", config, "--target-jobs", "a:n=1"]
    assert snakemake_arguments(PLAIN) == expected


def test_arguments_that_are_no_utf8_come_through_as_they_are() -> None:
    script = PLAIN.encode().replace(b"'all'", b"'a\xff\xe2\x80\xa8b'").decode("utf-8", "surrogateescape")
    arguments = snakemake_arguments(script)
    assert arguments is not None
    assert os.fsencode(arguments[3]) == b"a\xff\xe2\x80\xa8b"


@pytest.mark.parametrize(
    "script",
    [
        PLAIN.replace("#!/bin/sh", "#!/bin/bash"),
        PLAIN.replace(HERE, f"export SEED='1' && {HERE}"),
        PLAIN.replace(HERE, "/usr/bin/another/python"),
        PLAIN.replace("-m snakemake", "-m pytest"),
        PLAIN.replace("'all'", "$CORES"),
        PLAIN.replace("'all'", '"all"'),
        PLAIN.replace("'all'", "~/cores"),
        PLAIN.replace("'all'", "1 > log"),
        PLAIN.replace("'all'", "1 | cat"),
        PLAIN.replace("'all'", "it\\'s"),
        PLAIN.replace("'all'", "'all"),
        PLAIN + "exit 0\n",
        "#!/bin/sh\n",
        "",
    ],
)
def test_a_script_that_needs_a_shell_is_told_from_a_plain_one(script: str) -> None:
    assert snakemake_arguments(script) is None


SNAKEFILE = """\
rule kept:
    output: "kept.txt"
    shell: "kill -USR2 $PPID; sleep 0.3; echo $TOLD $PWD > {output}"

rule broken:
    output: "broken.txt"
    shell: "exit 7"
"""
DRIVER = """\
import json, os, signal, sys
from pathlib import Path
from snakemake_executor_plugin_submitit.inner import start
signal.signal(signal.SIGUSR2, lambda *_: print("parent hears"))
child = start(Path(sys.argv[1]), Path(sys.argv[2]), {**os.environ, "TOLD": "something"})
status = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
child.wait()
child.wait()
os.kill(os.getpid(), signal.SIGUSR2)
told = {"kind": type(child).__name__, "exit_code": status.si_status, "mine": "TOLD" in os.environ}
print(json.dumps({**told, "folder": os.getcwd()}))
"""


def drive(tmp_path: Path, target: str, prefix: str = "") -> tuple[dict[str, Any], str]:
    """Start a script that makes a target from another folder; what became of it, and what was printed."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "Snakefile").write_text(SNAKEFILE)
    script = tmp_path / "script.sh"
    script.write_text(f"#!/bin/sh\n{prefix}{HERE} -m snakemake --cores 'all' --nolock {target}\n")
    answer = subprocess.run(
        [sys.executable, "-c", DRIVER, str(script), str(folder)], cwd=tmp_path, text=True,
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    *before, last = answer.stdout.splitlines()
    assert before == ["parent hears"], "nothing of the child may come back into its parent"
    assert json.loads(last)["folder"] == str(tmp_path)
    return json.loads(last), answer.stderr


@pytest.mark.parametrize(("prefix", "kind"), [("", "Forked"), ("true && ", "Popen")])
def test_forked_or_not_the_inner_snakemake_is_deaf_and_has_its_environment(
    tmp_path: Path, prefix: str, kind: str
) -> None:
    told, log = drive(tmp_path, "kept.txt", prefix)
    assert told["kind"] == kind
    assert (told["exit_code"], told["mine"]) == (0, False), log
    assert (tmp_path / "work" / "kept.txt").read_text().split() == ["something", str(tmp_path / "work")]


@pytest.mark.parametrize("prefix", ["", "true && "])
def test_forked_or_not_a_failing_rule_fails_the_job(tmp_path: Path, prefix: str) -> None:
    told, log = drive(tmp_path, "broken.txt", prefix)
    assert told["exit_code"] == 1
    assert "exit 7" in log


def test_a_mistake_in_the_arguments_fails_the_job(tmp_path: Path) -> None:
    told, log = drive(tmp_path, "--no-such-option")
    assert told["exit_code"] == 2
    assert "no-such-option" in log


def test_inside_a_process_with_threads_nothing_is_forked(tmp_path: Path) -> None:
    """Cluster debug runs jobs inside the head: a fork would inherit the locks of its threads."""
    import threading

    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    script = tmp_path / "script.sh"
    script.write_text(f"#!/bin/sh\n{HERE} -m snakemake --version\n")
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        child = start(script, tmp_path, {})
        assert isinstance(child, subprocess.Popen)
        assert child.wait(60) == 0
    finally:
        done.set()
        thread.join()
