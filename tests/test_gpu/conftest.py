"""The table that `make test-gpu` ends with, ready for benchmarks/README.md."""

import torch

from tests.test_gpu.checks import ROWS


def pytest_terminal_summary(terminalreporter):
    """Print what was measured."""
    if not ROWS:
        return
    terminalreporter.section("measured on this GPU")
    if torch.cuda.is_available():
        gigabytes = torch.cuda.get_device_properties(0).total_memory / 1e9
        versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
        terminalreporter.write_line(f"{torch.cuda.get_device_name()}, {gigabytes:.0f} GB, {versions}")
    terminalreporter.write_line("\n| what | value |\n|---|---|")
    for row in ROWS:
        terminalreporter.write_line("| " + " | ".join(row) + " |")
