"""`fbt init FOLDER`: a folder to work in, for those who have installed a wheel and have no clone."""

from __future__ import annotations

import shutil
from pathlib import Path

from fbt_core.errors import UserError
from fbt_core.files import make_folder

PACKAGED = Path(__file__).parent / "working_copy"
PARTS = ("Snakefile", "config", "workflow", "profiles")
NEXT_STEPS = """\
{folder} holds the Snakefile, config (what is reproduced), workflow and profiles (where it runs). Next:
  cd {folder}
  snakemake --cores 2            the whole paper, tiny, on this machine
  fbt plan                       what is planned
`snakemake --profile slurm` also needs the executor: pip install ./plugin, in a clone of the repository."""


def write_working_copy(folder: Path) -> str:
    """Copy Snakefile, config, workflow and profiles into a new or empty folder; returns what to do next."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("is not empty", where=str(folder), hint="name a new folder; nothing is overwritten")
    # A wheel holds a copy of these folders; in a clone they lie beside the package.
    source = PACKAGED if PACKAGED.is_dir() else Path(__file__).resolve().parents[1]
    make_folder(folder)
    for name in PARTS:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source / name, folder / name)
    # Snakemake looks for ./NAME at `--profile NAME`, never into profiles/.
    for profile in sorted((folder / "profiles").iterdir()):
        if profile.name != "default":
            (folder / profile.name).symlink_to(Path("profiles", profile.name))
    return NEXT_STEPS.format(folder=folder)
