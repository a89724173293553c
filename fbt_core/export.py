"""Give a trained student away: weights, a config.json that timm's own loader reads, and a model card.

python -m fbt_core.export results/smoke/runs/<run id> --to FOLDER

    import timm
    model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()

A network that no timm name builds (`create: module:Class`) is loaded by `fbt_core.export.load_exported`
instead; the card says which of the two it is.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
from torch import nn

from fbt_core.data.transforms import FOLDER_CROP
from fbt_core.errors import UserError
from fbt_core.files import make_folder, write_bytes, write_json, write_text
from fbt_core.methods.registry import method_facts
from fbt_core.run_files import WEIGHTS_FILE
from fbt_core.spec import RunSpec, parse_spec
from fbt_core.staged.network import LAYER_OPTIONS, build_network
from fbt_core.weights import fill, read_weights


def export(run: Path, to: Path, licence: str = "") -> list[Path]:
    """Write model.safetensors, config.json, preprocessing.json and README.md of a finished run.

    Raises UserError for a run that is not finished, one whose score needs more than the bare student, or a
    folder that already holds something.
    """
    metrics = read_metrics(run)
    spec = parse_spec(json.dumps(metrics["spec"]))
    # Everything that refuses comes before the folder is made: no half of an export is left.
    check_classifier(spec)
    if to.exists() and any(to.iterdir()):
        raise UserError("the folder is not empty", where=str(to), hint="name a new one with --to")
    network = build_student(spec)
    # Every key is compared: an export that loads must be the network that was scored.
    fill(network, read_weights(run / WEIGHTS_FILE), where=str(run / WEIGHTS_FILE), new_head=False)
    make_folder(to)
    config = timm_config(spec, network)
    # In the file itself, because weights get separated from their card.
    metadata = {"format": "pt", "run": spec.id, "git_sha": str(metrics["provenance"].get("git_sha", ""))}
    write_bytes(to / "model.safetensors", safetensors.torch.save(network.state_dict(), metadata))
    write_json(to / "config.json", config)
    write_json(to / "preprocessing.json", preprocessing(spec))
    write_text(to / "README.md", card(metrics, spec, config, licence))
    return sorted(to.iterdir())


def read_metrics(run: Path) -> dict[str, Any]:
    """A finished run's metrics; UserError for one that is not."""
    try:
        metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    except FileNotFoundError:
        hint = "`fbt status --runs` lists the finished runs"
        raise UserError(
            "this run is not finished: it has no metrics.json", where=str(run), hint=hint
        ) from None
    return metrics


def check_classifier(spec: RunSpec) -> None:
    """Refuse a run whose weights alone do not give its score, as config/methods.yaml states of its method."""
    facts = method_facts(spec.method.name)
    if facts.exports is not None:
        what = f"{facts.title}'s weights are {facts.exports}; its score is that of {facts.score}"
        raise UserError(what, where=spec.id, hint="take a run of another method of this pair")


def build_student(spec: RunSpec) -> nn.Module:
    """The student's network, with random weights."""
    return build_network(spec.student, spec.dataset.classes, spec.dataset.image_size)


def is_timm_model(spec: RunSpec) -> bool:
    """Whether timm builds the student from a name and plain options alone."""
    options = spec.student.options
    # timm rebuilds a network from plain JSON, which cannot hold a class.
    classes = any(isinstance(options.get(name), str) and ":" in str(options[name]) for name in LAYER_OPTIONS)
    return ":" not in spec.student.create and "block_args" not in options and not classes


def timm_config(spec: RunSpec, network: nn.Module) -> dict[str, Any]:
    """What timm's hub loader reads: architecture, model_args, pretrained_cfg."""
    size = spec.dataset.image_size
    view = preprocessing(spec)
    known = getattr(network, "pretrained_cfg", {})
    arguments: dict[str, Any] = dict(spec.student.model_dump(mode="json")["options"])
    cfg = {
        "tag": spec.id,
        "num_classes": spec.dataset.classes,
        "input_size": [3, size, size],
        "mean": view["mean"],
        "std": view["std"],
        "crop_pct": view["crop_pct"],
        "interpolation": view["interpolation"],
        **{name: known.get(name) for name in ("first_conv", "classifier")},
    }
    # A network of a fixed size is built for it, so the size is an argument.
    if is_timm_model(spec) and timm.get_pretrained_cfg(spec.student.create).fixed_input_size:
        arguments["img_size"] = size
        cfg["fixed_input_size"] = True
    return {
        "architecture": spec.student.create,
        "num_classes": spec.dataset.classes,
        "num_features": network.num_features,
        "model_args": arguments,
        "pretrained_cfg": cfg,
        "loader": "timm" if is_timm_model(spec) else "fbt_core.export.load_exported",
        "spec": spec.model_dump(mode="json"),
    }


def preprocessing(spec: RunSpec) -> dict[str, Any]:
    """How a test image becomes the network's input, as the run's own evaluation did it."""
    crop = spec.test_crop
    # The default is written out: whoever reads the file does not know ours.
    if crop is None and spec.dataset.loader == "image_folder":
        crop = FOLDER_CROP
    return {
        "image_size": spec.dataset.image_size,
        "mean": list(spec.student.mean),
        "std": list(spec.student.std),
        "crop_pct": crop.share if crop else 1.0,
        "interpolation": crop.interpolation if crop else "bilinear",
    }


def load_exported(folder: Path | str) -> nn.Module:
    """An exported network with its weights, also one that no timm name builds; in eval mode."""
    folder = Path(folder)
    spec = parse_spec(json.dumps(json.loads((folder / "config.json").read_text())["spec"]))
    network = build_student(spec)
    network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    return network.eval()


def card(metrics: dict[str, Any], spec: RunSpec, config: dict[str, Any], licence: str) -> str:
    """The model card, filled from the run's metrics."""
    best, last = metrics["best"], metrics["last"]
    images = spec.dataset.test_images
    share = last["top1"] / 100
    # The binomial standard error: what another test set of this size would change.
    error = 100 * math.sqrt(share * (1 - share) / images)
    facts = method_facts(spec.method.name)
    teacher = spec.teacher
    taught_by = f"{teacher.architecture} ({teacher.weights})" if teacher else "none"
    if config["loader"] == "timm":
        load = 'import timm\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()'
        prepare = (
            "from timm.data import create_transform, resolve_data_config\n"
            "transform = create_transform(**resolve_data_config({}, model=model))\n"
            "logits = model(transform(image).unsqueeze(0))"
        )
    else:
        load = 'from fbt_core.export import load_exported\nmodel = load_exported("FOLDER")'
        prepare = "# no timm name builds this network; preprocessing.json says how an image is prepared"
    recipe, optimizer = spec.recipe, spec.recipe.optimizer
    lines = [
        "---",
        "library_name: timm",
        "tags: [image-classification, knowledge-distillation]",
        "---",
        f"# {spec.student.architecture} distilled with {facts.title}",
        "",
        f"- Data: {spec.dataset.name}, {spec.dataset.train_images:,} training and {images:,} test images, "
        f"{spec.dataset.classes} classes, {spec.dataset.image_size} px",
        f"- Teacher: {taught_by}",
        f"- Method: {facts.title} ({facts.citation})",
        f"- Top-1: {last['top1']:.2f} % ± {error:.2f} (last epoch; standard error from the test images), "
        f"{best['top1']:.2f} % (best epoch {best['epoch']} on the test images: the weights of this file)",
        f"- Recipe: {recipe.epochs} epochs, batch {recipe.batch_size}, {optimizer.name} "
        f"{optimizer.learning_rate:g}, weight decay {optimizer.weight_decay:g}, {recipe.precision}",
        f"- Licence of the data: {licence or 'not stated here; see the data set'}",
        f"- Run: `{spec.id}`, code at git {str(metrics['provenance'].get('git_sha', 'unknown'))[:12]}",
        "",
        "## Use",
        "",
        "```python",
        load,
        prepare,
        "```",
        "",
        "`config.json` holds the whole spec of the run, `preprocessing.json` the view of a test image.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fbt_core.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--to", type=Path, required=True, help="a new folder")
    parser.add_argument("--licence", default="", help="the licence of the data, for the card")
    chosen = parser.parse_args(arguments)
    try:
        for path in export(chosen.run, chosen.to, chosen.licence):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
