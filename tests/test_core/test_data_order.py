"""Which images make which batch: every image once, the same for any number of processes and any restart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fbt_core.collectives import rows_of
from fbt_core.data.order import Order
from fbt_core.data.order import test_keys as make_test_keys
from fbt_core.errors import UserError

sizes = some.integers(8, 60)
worlds = some.sampled_from([1, 2, 4])


@given(images=sizes, epoch=some.integers(0, 5))
def test_an_epoch_shows_each_image_at_most_once_and_drops_the_rest(images, epoch):
    order = Order(images, 8, seed=1)
    seen = [index for key in order.keys(epoch) for index in key.indices]
    assert len(seen) == len(set(seen)) == images // 8 * 8
    assert set(seen) <= set(range(images))


@given(images=sizes, first=some.integers(0, 7))
def test_resuming_in_mid_epoch_shows_the_rest(images, first):
    order = Order(images, 8, seed=1)
    assert order.keys(3, first) == order.keys(3)[first:]


def test_epochs_and_seeds_differ():
    order = Order(64, 64, seed=1)
    assert order.keys(0)[0].indices != order.keys(1)[0].indices
    assert order.keys(0)[0].indices != Order(64, 64, seed=2).keys(0)[0].indices


@given(world=worlds, half_share=some.integers(1, 6))
def test_processes_share_the_whole_batch_and_hold_mirrored_rows_together(world, half_share):
    batch = 2 * half_share * world
    rows = [rows_of(rank, world, batch) for rank in range(world)]
    assert sorted(row for part in rows for row in part) == list(range(batch))
    for part in rows:
        assert [batch - 1 - row for row in part] == list(reversed(part))


@given(images=sizes, batch=some.integers(1, 20), world=worlds)
def test_evaluation_counts_every_image_once(images, batch, world):
    parts = [make_test_keys(images, batch, rank, world) for rank in range(world)]
    seen = [index for keys in parts for key in keys for index in key.indices]
    assert sorted(seen) == list(range(images))


def test_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(UserError, match="batch_size 65 is larger"):
        Order(64, 65, seed=0)
