"""PAT: the numbers that its authors' code gives, and what the corrected variant does instead."""

from __future__ import annotations

import copy
import json
import zlib
from pathlib import Path

import pytest
import timm
import torch

from fbt_core.losses.logits import kl_divergence
from fbt_core.methods import build_method
from fbt_core.methods.base import Batch, Context
from fbt_core.methods.pat import (
    Aligner,
    PromptBlock,
    RegionAttention,
    RegionEmbedding,
    ToMap,
    ToTokens,
    as_map,
    sine_table,
)
from fbt_core.methods.reviewkd import hierarchical_context
from fbt_core.spec import MethodSpec
from fbt_core.staged import stage
from fbt_core.staged.base import FeatureShape
from fbt_core.teacher import Teacher
from tests.test_core.methods_kit import (
    PAIRS,
    copy_state,
    default_parameters,
    make_batch,
    make_method,
    make_network,
    run_step,
    same_state,
    take_step,
)
from tests.test_core.test_losses_parity import draw, make_inputs

CASES = json.loads((Path(__file__).parents[1] / "golden" / "parity_pat.json").read_text())["cases"]
STUDENT, PROMPTED = "student_stage", "prompted_teacher_stage"


def role_of(name: str) -> str:
    """The file's word for a parameter of ours."""
    part, _, rest = name.partition(".")
    if part == "embeddings":
        number, _, rest = rest.partition(".")
        return f"embed{int(number) + 1}.{rest}"
    if part == "aligner":
        return f"feedback.map.{rest}"
    if part in ("norm", "query", "key_value"):
        return f"attention.{name}"
    return "prompt.beta" if name == "beta" else name


def fill(module: torch.nn.Module, inputs: dict, prefix: str = "", role=lambda name: name) -> torch.nn.Module:
    """The module in float64 with a case's weights; its parameters take their entries among the inputs."""
    module.double().train()
    for name, parameter in module.named_parameters():
        key = prefix + role(name)
        parameter.data.copy_(inputs[key].detach())
        inputs[key] = parameter
    return module


def shape_of(feature) -> FeatureShape:
    """The shape of a case's feature, a map (C, h, w) or tokens (N, C) with at most one more than a square."""
    sizes = tuple(feature)
    if len(sizes) == 3:
        return FeatureShape("nchw", sizes[0], sizes[1:])
    side = int(sizes[0] ** 0.5)
    return FeatureShape("tokens", sizes[1], (side, side), sizes[0] - side**2)


def in_layout(feature_map: torch.Tensor, shape: FeatureShape) -> torch.Tensor:
    return feature_map if shape.layout == "nchw" else feature_map.flatten(2).transpose(1, 2)


def check(case: dict, inputs: dict, loss: torch.Tensor, output: torch.Tensor | None = None) -> None:
    """All numbers of a case but its terms; at least three of them."""
    loss.backward()
    measured = {"loss": loss.item(), "total": loss.item()}
    sizes = dict.fromkeys(measured, 0.0)
    if output is not None:
        flat = output.detach().flatten()
        measured |= {"output.norm": flat.norm(), "output.sum": flat.sum()}
        measured |= {"output.projection": torch.dot(flat, draw(78, len(flat)))}
        sizes |= dict.fromkeys(("output.sum", "output.projection"), flat.norm().item())
    compared = 0
    for name, expected in case["expected"].items():
        if name.startswith("grad."):
            role, _, quantity = name.removeprefix("grad.").rpartition(".")
            gradient = inputs[role].grad
            flat = torch.zeros(1).double() if gradient is None else gradient.flatten()
            value = flat.norm() if quantity == "norm" else torch.dot(flat, draw(77, len(flat)))
            size = flat.norm().item()
        elif name in measured:
            value, size = measured[name], sizes.get(name, 0.0)
        else:
            continue
        assert float(value) == pytest.approx(expected, rel=1e-6, abs=max(1e-6 * size, 1e-12)), name
        compared += 1
    assert compared >= 3


def of_kind(kind):
    cases = [case for case in CASES if case["kind"] == kind]
    assert cases
    return pytest.mark.parametrize("case", cases, ids=lambda case: case["name"].replace(" ", "_"))


@of_kind("pat.hcl")
def test_the_pyramid_is_the_released_one(case):
    inputs = make_inputs(case["inputs"])
    check(case, inputs, hierarchical_context(inputs["student"], inputs["teacher"]))


@of_kind("pat.projector")
def test_projectors_are_the_released_ones(case):
    inputs = make_inputs({**case["inputs"], **case["weights"]})
    source, target = shape_of(case["options"]["in_shape"]), shape_of(case["options"]["out_shape"])
    x = inputs["x"]
    if source.layout == "nchw" and target.layout == "tokens":
        output = fill(RegionEmbedding(source, target.width, target.grid[0]), inputs, "embed.")(x)
    elif target.layout == "tokens":
        tokens = fill(ToTokens(x.shape[1], source.width, target), inputs, "tokens.")
        output = in_layout(tokens(x), target)
    else:
        output = fill(ToMap(source.width, target), inputs, "map.")(as_map(x, source, released=False))
    check(case, inputs, (output * draw(42, output.shape)).sum(), output)


@of_kind("pat.attention")
def test_the_attention_is_the_released_one(case):
    inputs = make_inputs({**case["inputs"], **case["weights"]})
    stages = [inputs[f"stage{i}"] for i in range(1, 5)]
    shapes = [shape_of(x.shape[1:]) for x in stages]
    released = "corrected" not in case["name"]
    attention = RegionAttention(shapes, 16, 8, 2, released)
    output = torch.stack(fill(attention, inputs, role=role_of)(stages), dim=1)
    check(case, inputs, (output * draw(62, output.shape)).sum(), output)


@of_kind("pat.prompt")
def test_the_prompt_is_the_released_one(case):
    inputs = make_inputs({**case["inputs"], **case["weights"]})
    entry, left = (shape_of(case["options"][key]) for key in ("prompt_shape", "teacher_stage_shape"))
    block = fill(PromptBlock(entry, left, 4, 16, released=True), inputs, role=role_of)
    gap = as_map(inputs["feedback"], left, released=True) if "feedback" in inputs else None
    output = block(inputs["x"], gap)
    check(case, inputs, (output * draw(73, output.shape)).sum(), output)


@of_kind("pat.loss")
def test_the_terms_are_the_released_ones(case):
    inputs, options = make_inputs({**case["inputs"], **case["weights"]}), case["options"]
    student, teacher = ([inputs[f"{name}{i}"] for i in range(1, 5)] for name in (STUDENT, PROMPTED))
    regions = int((options["queries"] // 4) ** 0.5)
    shapes = [shape_of(x.shape[1:]) for x in student]
    groups = fill(RegionAttention(shapes, 16, 8, regions, True), inputs, role=role_of)(student)
    features = 0
    for i, (tokens, source) in enumerate(zip(groups, teacher, strict=True), start=1):
        target = shape_of(source.shape[1:])
        kind = "map" if target.layout == "nchw" else "tokens"
        aligner = Aligner(16, regions, target)
        fill(aligner.layers, inputs, f"align{i}.{kind}.")
        features = features + hierarchical_context(aligner(tokens), as_map(source, target, True))
    logits = [inputs[f"{name}_logits"] for name in ("student", "teacher", "prompted_teacher")]
    known = logits[1].detach()
    terms = {
        "label": torch.nn.functional.cross_entropy(logits[0], inputs["labels"]),
        "kd": kl_divergence(logits[0], known, options["kd_temperature"]),
        "features": features,
        "regularisation": kl_divergence(logits[2], known, 1.0),
    }
    weighted = {name: options["weights"][name] * term for name, term in terms.items()}
    for name in ("kd", "features", "regularisation"):
        assert weighted[name].item() == pytest.approx(case["expected"][name], rel=1e-6)
    check(case, inputs, sum(weighted.values()))


@of_kind("pat.step")
def test_three_steps_are_the_released_ones(case):
    """Whole steps through two networks; what a step leaves enters the next one."""
    options, inputs = case["options"], make_inputs({**case["inputs"], **case["weights"]})
    student, teacher = (_build(options[name]) for name in ("student", "teacher"))
    parameters = {**default_parameters("pat"), "variant": "released", "regions": 2, "width": 16}
    context = Context(10, 40, 3, 0.0, 32, student_family="cnn", teacher_family="cnn")
    spec = MethodSpec(name="pat", parameters=parameters, revision=1)
    method = build_method(spec, student, teacher, context).double().train()
    fill(method.extras["attention"], inputs, role=role_of)
    for i in range(1, 5):
        fill(method.extras[f"aligner{i}"].layers, inputs, f"align{i}.map.")
        fill(method.extras[f"prompt{i}"], inputs, f"prompt_block{i}.", role_of)
    for step in range(3):
        target = inputs[f"labels_step{step}"]
        batch = Batch(inputs[f"images_step{step}"].detach(), target, torch.arange(4))
        result = method(batch, Teacher(teacher).observe(batch.images))
        method.zero_grad()
        result["loss"].backward()
        names = {"labels": "cross_entropy_unsmoothed", "logits": "kd"}
        for term, value in result["terms"].items():
            expected = case["expected"][f"step{step}.{names.get(term, term)}"]
            assert value.item() == pytest.approx(expected, rel=2e-6)
        for part, modules in _parts(method).items():
            expected = case["expected"][f"step{step}.grad.{part}.norm"]
            assert _norm(modules) == pytest.approx(expected, rel=2e-6, abs=1e-12), (step, part)


def _build(entry: dict):
    network = timm.create_model(entry["timm"], num_classes=10, **entry["options"])
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        seed = zlib.crc32(f"{entry['fill_seed']}:{name}".encode()) % 2**31
        value = draw(seed, tensor.shape, entry["fill_scale"])
        if name.endswith("running_var"):
            value = 1 + value.abs()
        elif tensor.ndim == 1 and name.endswith("weight"):
            value = 1 + 0.2 * value
        tensor.copy_(value)
    return stage(network.double(), 32)


def _parts(method) -> dict[str, list]:
    extras = method.extras
    prompts = [extras[f"prompt{i}"] for i in range(1, 5)]
    attention = extras["attention"]
    return {
        "student": [method.student],
        **{f"prompt_block{i}": [prompt] for i, prompt in enumerate(prompts, start=1)},
        "embed": [attention.embeddings],
        "attention": [attention.norm, attention.query, attention.key_value],
        "align": [extras[f"aligner{i}"] for i in range(1, 5)],
        "feedback_and_fusion": [part for prompt in prompts for part in (prompt.fusion, prompt.aligner)],
    }


def _norm(modules: list) -> float:
    gradients = [p.grad.flatten() for module in modules for p in module.parameters() if p.grad is not None]
    return torch.cat(gradients).norm().item() if gradients else 0.0


# --- the corrected variant


def test_a_corrected_prompt_treats_tokens_as_the_map_that_they_are():
    """On the same numbers with the channels moved last; a class token passes by unchanged."""
    of_map, gap = torch.randn(2, 16, 4, 4), torch.randn(2, 16, 4, 4)
    shapes = [FeatureShape("nchw", 16, (4, 4)), FeatureShape("nhwc", 16, (4, 4))]
    shapes += [FeatureShape("tokens", 16, (4, 4), prefix) for prefix in (0, 1)]
    original = PromptBlock(shapes[0], shapes[0], 4, 16, released=False)
    original.beta.data.fill_(0.5)
    expected = original(of_map, gap)
    assert not torch.equal(expected, of_map)
    tokens, token = of_map.flatten(2).transpose(1, 2), torch.randn(2, 1, 16)
    inputs = [of_map.permute(0, 2, 3, 1), tokens, torch.cat((token, tokens), dim=1)]
    for shape, x in zip(shapes[1:], inputs, strict=True):
        block = copy.deepcopy(original)
        block.shape = shape
        output = block(x, gap)
        torch.testing.assert_close(as_map(output, shape, released=False), expected)
        assert torch.equal(output[:, : shape.prefix_tokens], x[:, : shape.prefix_tokens])


@pytest.mark.parametrize("direction", PAIRS, ids="_to_".join)
def test_prompts_that_say_nothing_leave_the_teacher_as_it_is(direction):
    """At the start beta is 0: every stage and the logits are the unprompted ones, in each family."""
    method, batch = make_method("pat", PAIRS[direction]), make_batch()
    plain = Teacher(method.teacher).observe(batch.images)
    with torch.no_grad():
        prompted = method._run_prompted(plain.stem)
    for ours, theirs in zip(prompted.stages, plain.stages, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(prompted.logits, plain.logits)


def test_the_released_prompts_scramble_tokens_and_no_maps():
    for pair, same in ((("convnext_t", "resnet18"), True), (("swin_t", "resnet18"), False)):
        method, batch = make_method("pat", pair, variant="released"), make_batch()
        plain = Teacher(method.teacher).observe(batch.images)
        with torch.no_grad():
            prompted = method._run_prompted(plain.stem)
        assert torch.allclose(prompted.stages[3], plain.stages[3], atol=1e-5) == same


def test_prompts_enter_a_swin_after_its_patch_merging():
    network = make_network("swin_t")
    assert [entry.grid for entry in network.entries] == [shape.grid for shape in network.shapes]
    x = torch.randn(2, *network.shapes[0].grid, network.shapes[0].width)
    with torch.no_grad():
        torch.testing.assert_close(network.close_stage(1, network.open_stage(1, x)), network.stages[1](x))
    others = make_network("convnext_t")
    assert [entry.grid for entry in others.entries[1:]] == [shape.grid for shape in others.shapes[:3]]


def test_rows_of_the_sine_table():
    table = sine_table(torch.tensor([0, 3]), 4)
    expected = torch.tensor([[0, 1, 0, 1], [3.0, 3.0, 0.03, 0.03]], dtype=torch.float64)
    expected[1] = torch.stack([f(a) for a in expected[1][::2] for f in (torch.sin, torch.cos)])
    torch.testing.assert_close(table, expected)


# --- the gap


def test_the_gap_of_a_step_enters_the_next_one_and_a_checkpoint_keeps_it():
    method, first, second = make_method("pat"), make_batch(), make_batch(seed=5)
    take_step(method, first)
    for i in range(1, 5):  # one step has hardly moved it
        method.extras[f"prompt{i}"].beta.data.fill_(0.5)
    kept = copy_state(method.trainable_module)
    with_gap = run_step(method, second)["loss"]
    resumed = make_method("pat")
    resumed.trainable_module.load_state_dict(kept)
    assert torch.equal(run_step(resumed, second)["loss"], with_gap)
    for i in range(1, 5):
        kept[f"extras.gap{i}._extra_state"] = torch.zeros(0)
    resumed.trainable_module.load_state_dict(kept)
    assert not torch.equal(run_step(resumed, second)["loss"], with_gap)


def test_a_gap_of_another_size_is_dropped():
    method = make_method("pat")
    take_step(method, make_batch(4))
    assert method.extras["gap1"].of(4) is not None
    assert method.extras["gap1"].of(3) is None
    assert torch.isfinite(run_step(method, make_batch(3))["loss"])


def test_the_average_of_the_weights_holds_no_gap():
    method = make_method("pat")
    method.setup_ema(decay=0.9)
    take_step(method, make_batch())
    method.update_ema(step=1)
    assert not [name for name in method.trainable_module_ema.module.state_dict() if "gap" in name]


def test_two_students_of_one_teacher_do_not_see_each_others_prompts():
    teacher = make_network("swin_t", "ofa")
    before = copy_state(teacher)
    parameters = default_parameters("pat")
    context = Context(10, 40, 3, 0.1, 64, student_family="cnn", teacher_family="msa")
    spec = MethodSpec(name="pat", parameters=parameters, revision=1)
    torch.manual_seed(0)
    method = build_method(spec, make_network("resnet18", "ofa"), teacher, context).train()
    plain = Teacher(teacher).observe(make_batch().images)
    for seed in (1, 2):
        take_step(method, make_batch(seed=seed), rate=0.5)
    again = Teacher(teacher).observe(make_batch().images)
    assert torch.equal(plain.logits, again.logits)
    assert same_state(before, copy_state(teacher))


# --- sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "student", "millions"),
    [
        ("swin_tiny_patch4_window7_224", "resnet18", 38.52),
        ("vit_small_patch16_224", "resnet18", 32.57),
        ("mixer_b16_224", "mobilenetv2_100", 81.66),
        ("convnext_tiny", "deit_tiny_patch16_224", 14.48),
    ],
)
def test_extra_parameters_of_full_size_pairs_are_the_released_ones(teacher, student, millions):
    networks = [stage(timm.create_model(name, num_classes=100), 224, "ofa") for name in (student, teacher)]
    parameters = {**default_parameters("pat"), "width": 512}
    context = Context(100, 50_000, 300, 0.1, 224, student_family="cnn", teacher_family="msa")
    method = build_method(MethodSpec(name="pat", parameters=parameters, revision=1), *networks, context)
    counted = sum(parameter.numel() for parameter in method.extras.parameters())
    assert round(counted / 1e6, 2) == millions
