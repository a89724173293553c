"""In CI no test is skipped silently: what it needs was installed (`make packages`), so a skip is a failure.

A test that rightly skips there says so: `@pytest.mark.gpu` (CI has none), or `@pytest.mark.may_skip`.
"""

import os

import pytest

ALLOWED = ("gpu", "may_skip")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A skipped test fails in CI, with its reason."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and not any(map(item.get_closest_marker, ALLOWED)):
        fail_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """A file of tests that is skipped as a whole (importorskip) fails in CI as well."""
    report = yield
    if report.skipped:
        fail_in_ci(report)
    return report


def fail_in_ci(report):
    """Turn a skip into a failure where CI=true."""
    if os.environ.get("CI"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"skipped in CI, where it must run: {reason}"
