"""What happens to runs that the memory does not hold together: halves of them train, one after the other.

A single process frees its memory and goes on. Of several processes one may meet the full memory while the
others wait for it in an exchange, so all end, and torchrun starts them again (fbt_core/torchrun.py). What did
not fit is noted in a file, where the processes that are started next find it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from fbt_core import distributed
from fbt_core.distributed import Group
from fbt_core.errors import TooLarge, UserError
from fbt_core.run_folder import RunFolder
from fbt_core.torchrun import TOO_LARGE


def halves(folders: Sequence[RunFolder], full: Exception) -> list[list[RunFolder]]:
    """The runs that are left, in two halves; a single one fails with `full`, and nothing is left to train."""
    going = [folder for folder in folders if not folder.ended]
    # One run cannot be halved: its own error says what would help.
    if len(going) < 2:
        for folder in going:
            with folder.ends_alone():
                folder.open()  # what was met before this process began is noted in the folder as well
                raise full
        return []
    for folder in going:
        folder.too_large.append(len(going))
    middle = (len(going) + 1) // 2
    return [going[:middle], going[middle:]]


def report_full(folders: Sequence[RunFolder], full: Exception, group: Group) -> None:
    """Say once which runs go on; where there are several processes, end this one so that all begin anew."""
    going = [folder for folder in folders if not folder.ended]
    notes = os.environ.get(TOO_LARGE)
    if group.world > 1 and notes is None:  # nobody would start the processes again
        raise full
    # Several processes may be full at once: the first speaks, and the others' errors are no errors.
    if distributed.PEERS.first_to_fail():
        if len(going) > 1:
            first = (len(going) + 1) // 2
            going[0].writes = True
            going[0].note(
                f"the memory does not hold {len(going)} runs: {first} go on, then {len(going) - first}"
            )
        if notes is not None:
            line = json.dumps({"runs": [folder.spec.id for folder in going], "error": str(full)})
            with Path(notes).open("a") as file:
                file.write(line + "\n")
    if group.world > 1:
        raise TooLarge("the memory does not hold the runs together")


def noted_as_full(folders: Sequence[RunFolder]) -> UserError | None:
    """Why these runs cannot train together, if processes that were started before have met that."""
    if (notes := os.environ.get(TOO_LARGE)) is None:
        return None
    going = {folder.spec.id for folder in folders if not folder.ended}
    for line in Path(notes).read_text().splitlines():
        note = json.loads(line)
        # More runs need no less memory: what holds all of those that did not fit does not fit either.
        if going.issuperset(note["runs"]):
            return UserError(note["error"])
    return None
