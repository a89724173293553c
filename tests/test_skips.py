"""A test that needs something fails in CI if it is not there, instead of being skipped silently."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest
def test_skipped():
    pytest.skip("the reason")
@pytest.mark.gpu
def test_without_a_gpu():
    pytest.skip("no GPU")
@pytest.mark.xfail(reason="known", strict=True)
def test_expected_to_fail():
    assert False
def test_fine():
    pass
"""


@pytest.mark.parametrize(("ci", "outcome"), [("", "2 skipped"), ("true", "1 failed")])
def test_a_skip_is_a_failure_in_ci(tmp_path, ci, outcome):
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: x\n    may_skip: x\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_some.py"]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"CI": ci, "PATH": "/usr/bin"}
    )
    assert outcome in ended.stdout, ended.stdout
    assert ("skipped in CI, where it must run: Skipped: the reason" in ended.stdout) == bool(ci)


@pytest.mark.parametrize(("ci", "code"), [("", 5), ("true", 2)])
def test_a_file_that_is_skipped_is_a_failure_in_ci(tmp_path, ci, code):
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text("import pytest\npytest.importorskip('no_such_package')\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_some.py"]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"CI": ci, "PATH": "/usr/bin"}
    )
    assert ended.returncode == code, ended.stdout
