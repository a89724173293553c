"""Puts into the wheel what lies outside the packages; all else is in pyproject.toml.

That is the methods' facts and the recipes, which the engine reads, and what `fbt init` writes.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

WORKING_COPY = ("Snakefile", "config", "workflow", "profiles")


class BuildWithWorkingCopy(build_py):
    """Not in an editable installation: there `fbt init` copies from the clone."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, "fbt_paper", "working_copy")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in WORKING_COPY:
            copy = shutil.copytree if Path(name).is_dir() else shutil.copy2
            copy(name, folder / name)
        shutil.copy2("config/methods.yaml", Path(self.build_lib, "fbt_core", "methods", "methods.yaml"))
        shutil.copy2("config/recipes.yaml", Path(self.build_lib, "fbt_core", "recipes.yaml"))


setup(cmdclass={"build_py": BuildWithWorkingCopy})
