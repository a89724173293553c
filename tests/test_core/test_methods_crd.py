"""CRD's memory bank: which rows move, which images are negatives, and how it resumes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fbt_core.methods.crd import UNKNOWN, Bank, OtherClasses
from tests.test_core.methods_kit import CLASSES, IMAGES, make_batch, make_method, run_step

LABELS = torch.arange(IMAGES) % CLASSES


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=4, max_size=30),
    indices=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    count=st.integers(1, 40),
)
def test_negatives_are_of_other_classes(labels, indices, count):
    labels, indices = torch.tensor(labels), torch.tensor(indices)
    drawn = OtherClasses(len(labels), labels).draw(indices, count)
    others = torch.tensor([int((labels != label).sum()) for label in labels])
    cap = min(count, min(int(n) if n else len(labels) - 1 for n in others))  # the same in every batch
    assert drawn.shape == (len(indices), cap)
    for index, row, available in zip(indices, drawn, others[indices], strict=True):
        assert (labels[row] != labels[index]).all() or not available
        assert index not in row


def test_every_image_of_another_class_can_be_drawn():
    torch.manual_seed(0)
    labels = torch.tensor([2, 0, 1, 0, 2, 1])
    drawn = torch.cat([OtherClasses(6, labels).draw(torch.tensor([1]), 4) for _ in range(100)])
    assert set(drawn.flatten().tolist()) == {0, 2, 4, 5}


@pytest.mark.parametrize("labels", [None, torch.tensor([2, 2, 2, 2])], ids=["unknown", "one class"])
def test_without_other_classes_every_other_image_can_be_drawn_and_never_the_image_itself(labels):
    torch.manual_seed(0)
    drawn = torch.cat([OtherClasses(4, labels).draw(torch.tensor([1]), 3) for _ in range(100)])
    assert set(drawn.flatten().tolist()) == {0, 2, 3}


def mixed_batch(weight):
    """Images mixed with the mirrored ones of other classes, each keeping `weight` of its own label."""
    batch = make_batch()
    batch.indices = torch.tensor([0, 11, 22, 33])
    labels = torch.nn.functional.one_hot(LABELS[batch.indices], CLASSES).float()
    batch.target = weight * labels + (1 - weight) * labels.flip(0)
    return batch


@pytest.mark.parametrize("weight", [0.9, 0.1], ids=["own image dominates", "partner dominates"])
def test_negatives_of_a_mixed_image_are_of_other_classes_than_its_row(weight):
    """The rows of the bank belong to the images as they are in the dataset, not to the mixtures."""
    torch.manual_seed(0)
    method, batch = make_method("crd", labels=LABELS), mixed_batch(weight)
    columns = method._choose_columns(batch)
    assert torch.equal(columns[:, 0], batch.indices)
    assert (LABELS[columns[:, 1:]] != LABELS[batch.indices][:, None]).all()
    drawn = [set(LABELS[row].tolist()) for row in columns[:, 1:]]
    assert all(len(classes) == CLASSES - 1 for classes in drawn)  # the partner's class among them


@pytest.mark.parametrize("weight", [0.9, 0.1])
def test_where_no_class_is_given_a_mixed_image_is_still_not_its_own_negative(weight):
    torch.manual_seed(0)
    method, batch = make_method("crd"), mixed_batch(weight)
    for _ in range(20):
        columns = method._choose_columns(batch)
        assert not (columns[:, 1:] == batch.indices[:, None]).any()
    stored = method.extras["others"].labels[batch.indices]
    assert torch.equal(stored, batch.target.argmax(1))  # the heaviest class of the mixture


def test_classes_are_learnt_where_they_are_not_given():
    others = OtherClasses(6, None)
    assert (others.labels == UNKNOWN).all()
    others.learn(torch.tensor([3, 1]), torch.tensor([5, 0]))
    assert others.labels.tolist() == [1, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, 3]
    assert 5 not in others.draw(torch.tensor([5] * 50), 5)
    others = OtherClasses(2, torch.tensor([0, 1]))
    others.learn(torch.tensor([7]), torch.tensor([0]))
    assert others.labels.tolist() == [0, 1]


def test_a_row_moves_half_way_and_back_to_unit_length():
    bank = Bank(3, 2)
    bank.vectors.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    bank.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), momentum=0.5)
    expected = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [0.0, 1.0], [0.6, 0.8]])
    torch.testing.assert_close(bank.vectors, expected)


def test_the_normaliser_is_set_by_the_first_batch_only():
    torch.manual_seed(0)
    bank, columns = Bank(10, 4), torch.randint(10, (3, 5))
    embedding = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    first = bank.similarity(embedding, columns, 0.5)
    assert first.exp().mean().item() == pytest.approx(1 / 10, rel=1e-5)  # Z = N times the mean
    kept = bank.log_normaliser.clone()
    bank.similarity(-embedding, columns, 0.5)
    assert torch.equal(bank.log_normaliser, kept)
    expected = (embedding[0] @ bank.vectors[columns[0, 0]]) / 0.5 - kept
    torch.testing.assert_close(first[0, 0], expected)


def test_only_the_batchs_rows_move():
    method, batch = make_method("crd", labels=LABELS), make_batch()
    before = {name: method.extras[name].vectors.clone() for name in ("student_bank", "teacher_bank")}
    run_step(method, batch)["loss"].backward()
    for name, vectors in before.items():
        moved = (method.extras[name].vectors != vectors).any(dim=1)
        assert moved.nonzero().flatten().tolist() == sorted(batch.indices.tolist())


def test_the_bank_is_state_that_a_resume_needs():
    method = make_method("crd", labels=LABELS)
    for seed in (1, 2, 3):
        run_step(method, make_batch(seed=seed))
    state = method.trainable_module.state_dict()
    assert {"extras.student_bank.vectors", "extras.others.labels"} <= state.keys()
    twin = make_method("crd", seed=9, labels=LABELS)
    torch.manual_seed(5)
    fresh = run_step(twin, make_batch(seed=4))["loss"]
    twin = make_method("crd", seed=9, labels=LABELS)
    twin.trainable_module.load_state_dict(state)
    losses = []
    for resumed in (twin, method):
        torch.manual_seed(5)
        losses.append(run_step(resumed, make_batch(seed=4))["loss"])
    assert torch.equal(*losses)
    assert not torch.equal(fresh, losses[0])


def test_negatives_are_capped_by_the_images_there_are():
    method = make_method("crd", labels=LABELS, negatives=16384)
    columns = method._choose_columns(make_batch())
    assert columns.shape == (4, 1 + IMAGES - IMAGES // CLASSES)
    assert torch.equal(columns[:, 0], make_batch().indices)


def test_the_memory_banks_are_not_copied_into_the_ema():
    method = make_method("crd")
    method.setup_ema(decay=0.5)
    before = {name: value.clone() for name, value in method.trainable_module_ema.module.state_dict().items()}
    assert {name.split(".")[1] for name in before if name.startswith("extras.")} == {"student", "teacher"}
    with torch.no_grad():
        for parameter in method.trainable_module.parameters():
            parameter.add_(1.0)
    method.update_ema(step=2)  # timm copies the weights at the first step
    moved, now = method.trainable_module_ema.module.state_dict(), method.trainable_module.state_dict()
    for name, value in moved.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (before[name] + now[name]) / 2)
