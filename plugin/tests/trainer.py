"""A stand-in for the training engine: deterministic, checkpointed, and tame at signals.

    python trainer.py OUTPUT_FOLDER [--epochs N] [--steps N] [--step-s S] [--fast-after RESTARTS]
        [--eat-mb MB] [--gate FILE]

Keeps the engine's contract: at SIGUSR2 or SIGTERM it saves at the next step and ends with exit code 75; a
rerun of the same command continues. Undeclared files: last.json (checkpoint), history.jsonl. Declared:
weights.txt, metrics.json.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

INTERRUPTED = 75
interrupted = False


def next_digest(digest: str, step: int) -> str:
    """One optimiser step, as far as the tests are concerned."""
    return hashlib.sha256(f"{digest} {step}".encode()).hexdigest()


def final_weights(epochs: int, steps: int) -> str:
    """What an undisturbed training ends with."""
    digest = "start"
    for step in range(epochs * steps):
        digest = next_digest(digest, step)
    return digest


def publish(path: Path, text: str) -> None:
    """Write a file that is always whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def interrupt(*_: object) -> None:
    """Ask the loop to stop at the next step."""
    global interrupted
    interrupted = True


def execution() -> dict[str, str | None]:
    """What the executor lets the job know about itself."""
    names = ("JOB_ID", "RESTARTS", "QUEUE_WAIT_S", "GPUS")
    return {name.lower(): os.environ.get(f"SNAKEMAKE_SUBMITIT_{name}") for name in names}


def append_history(folder: Path, epoch: int, digest: str) -> None:
    """One line per epoch that is done."""
    line = json.dumps(
        {"epoch": epoch, "digest": digest, "restarts": execution()["restarts"], "time": time.time()}
    )
    with (folder / "history.jsonl").open("a") as stream:
        stream.write(line + "\n")


def wait_for_gate(gate: str | None) -> None:
    """After an epoch wait until the test has made a file, or something asks to stop."""
    while gate is not None and not Path(gate).exists() and not interrupted:
        time.sleep(0.02)


def train(options: argparse.Namespace) -> None:
    """Continue from the checkpoint, or begin."""
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "last.json"
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "digest": "start"}
    fast = int(execution()["restarts"] or 0) >= options.fast_after
    eaten = []
    for step in range(state["step"], options.epochs * options.steps):
        eaten.append(bytearray(options.eat_mb * 1_000_000))
        time.sleep(0 if fast else options.step_s)
        state = {"step": step + 1, "digest": next_digest(state["digest"], step)}
        epoch, rest = divmod(step + 1, options.steps)
        if rest == 0:
            publish(checkpoint, json.dumps(state))
            append_history(folder, epoch, state["digest"])
            wait_for_gate(options.gate)
        if interrupted:
            publish(checkpoint, json.dumps(state))
            sys.exit(INTERRUPTED)
    publish(folder / "weights.txt", state["digest"])
    metrics = {"execution": execution(), "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES")}
    publish(folder / "metrics.json", json.dumps(metrics))


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--step-s", type=float, default=0.2)
    parser.add_argument("--fast-after", type=int, default=10**6)
    parser.add_argument("--eat-mb", type=int, default=0)
    parser.add_argument("--gate")
    signal.signal(signal.SIGUSR2, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
