"""Order, sharding and augmentation of batches."""

from argparse import Namespace

import pytest
import torch
from torch import Generator

from datamodules.classification import stratified_split
from datamodules.iris import Iris
from datamodules.parts.augment import random_affine, random_crop, random_flip
from datamodules.parts.batches import EpochOrder, TensorBatches, derive_seed, to_device


def epoch(order: EpochOrder) -> list[list[int]]:
    return [torch.arange(order.num_samples)[batch].tolist() for batch in order]


def test_an_epoch_is_a_permutation_that_only_seed_and_epoch_decide():
    order = EpochOrder(100, 8, shuffle=True, seed=5)
    first, again = epoch(order), epoch(order)
    assert first == again
    assert sorted(sum(first, [])) == list(range(100))
    assert [len(batch) for batch in first] == [8] * 12 + [4]
    order.set_epoch(1)
    assert epoch(order) != first
    order.set_epoch(0)
    assert epoch(order) == first


@pytest.mark.parametrize("num_samples", [1, 2, 7, 64, 65, 66, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_processes_divide_each_batch_of_the_group(num_samples, world_size):
    whole = epoch(EpochOrder(num_samples, 8 * world_size, shuffle=True, seed=2))
    orders = [EpochOrder(num_samples, 8, True, 2, rank, world_size) for rank in range(world_size)]
    ranks = [epoch(order) for order in orders]
    assert len({len(rank) for rank in ranks}) == 1
    assert all(len(rank) == len(order) for rank, order in zip(ranks, orders, strict=True))
    for i in range(len(ranks[0])):
        together = sum((rank[i] for rank in ranks), [])
        assert len({len(rank[i]) for rank in ranks}) == 1
        assert together == whole[i][: len(together)]
        assert len(whole[i]) - len(together) < world_size
    assert all(len(batch) > 1 for rank in ranks for batch in rank)


@pytest.mark.parametrize("num_samples", [3, 7, 17, 64, 65])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_counts_every_sample_once_on_any_number_of_processes(num_samples, world_size):
    orders = [EpochOrder(num_samples, 8, False, 0, rank, world_size) for rank in range(world_size)]
    batches = [epoch(order) for order in orders]
    assert sum(sum(batches, []), []) == list(range(num_samples))
    assert [len(rank) for rank in batches] == [len(order) for order in orders]
    assert len({len(rank) for rank in batches}) == 1  # processes synchronize in every forward pass
    assert all(1 <= len(batch) <= 8 for rank in batches for batch in rank)


def test_a_last_batch_of_one_sample_is_left_out_only_in_training():
    assert [len(batch) for batch in epoch(EpochOrder(9, 4, shuffle=True))] == [4, 4]
    assert [len(batch) for batch in epoch(EpochOrder(9, 4, shuffle=False))] == [3, 3, 3]
    assert [len(batch) for batch in epoch(EpochOrder(3, 1, shuffle=True))] == [1, 1, 1]


def test_fewer_samples_than_processes_cannot_be_evaluated():
    with pytest.raises(ValueError, match="2 samples cannot be divided among 3 processes"):
        EpochOrder(2, 4, shuffle=False, world_size=3)


def test_batches_pair_inputs_with_their_labels_and_augment_each_differently():
    labels = torch.arange(50)
    noise = lambda inputs, context: inputs + torch.rand(len(inputs), generator=context.generator)  # noqa: E731
    batches = TensorBatches(labels.float(), labels, EpochOrder(50, 8, shuffle=True, seed=1), augment=noise)
    seen = [(inputs - labels, labels) for inputs, labels in batches]
    assert all(((noise >= 0) & (noise < 1)).all() for noise, _ in seen)
    assert len({round(one, 6) for noise, _ in seen for one in noise.tolist()}) == 50
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(seen, [(i - n, n) for i, n in batches], strict=True))


def test_similar_numbers_give_different_seeds():
    seeds = {derive_seed(*numbers) for numbers in [(0, 0), (0, 1), (1, 0), (0,), (1,), (0, 0, 0), (2**32 - 1, 7)]}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_stratified_split():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2])
    devices, held_out = stratified_split(labels, 0.2, seed=0)
    assert sorted(torch.cat([devices, held_out]).tolist()) == list(range(61))
    assert torch.bincount(labels[held_out], minlength=3).tolist() == [10, 2, 0]
    assert torch.equal(held_out, stratified_split(labels, 0.2, seed=0)[1])
    assert not torch.equal(held_out, stratified_split(labels, 0.2, seed=1)[1])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8, generator=Generator().manual_seed(0))


def test_random_crop_moves_each_image_by_itself_and_reflects(images):
    cropped = random_crop(images, 2, Generator().manual_seed(0))
    assert cropped.shape == images.shape
    assert cropped.dtype == images.dtype
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    shifts = set()
    for one, source in zip(cropped, padded, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(one, source[:, y : y + 8, x : x + 8])]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 15


def test_random_flip_mirrors_half_of_them(images):
    flipped = random_flip(images, Generator().manual_seed(0))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 20 < mirrored.sum() < 44


def test_random_affine_changes_each_image_differently_or_not_at_all(images):
    still = random_affine(images, 0.0, 0.0, 0.0, Generator().manual_seed(0))
    torch.testing.assert_close(still, images.float(), atol=1e-2, rtol=0)
    same = images[:1].expand(64, -1, -1, -1)
    moved = random_affine(same, 10.0, 0.1, 0.1, Generator().manual_seed(0))
    assert moved.shape == same.shape
    assert len({tuple(one.flatten().tolist()) for one in moved}) == 64


def test_random_affine_keeps_within_its_bounds():
    dot = torch.zeros(200, 1, 41, 41)
    dot[:, :, 20, 20] = 1.0
    moved = random_affine(dot, 45.0, 0.1, 0.0, Generator().manual_seed(0)).amax(1)  # rotation does not move the centre
    rows, columns = moved.amax(2).argmax(1), moved.amax(1).argmax(1)
    assert 2 <= (rows - 20).abs().max() <= 6
    assert 2 <= (columns - 20).abs().max() <= 6


def test_random_affine_turns_without_shearing():
    bar = torch.zeros(100, 1, 41, 41)
    bar[:, :, 20, 5:36] = 1.0
    turned = random_affine(bar, 30.0, 0.0, 0.0, Generator().manual_seed(0))
    assert turned.sum((1, 2, 3)).std() / turned.sum((1, 2, 3)).mean() < 0.1


def test_data_that_does_not_fit_stays_in_main_memory():
    """Tensors on the device "meta" have no data, but they show which tensors are moved."""
    device = torch.device("meta")
    devices = {}
    for budget in (None, 0.0, 1.0, 1800 / 1e9):
        datamodule = Iris(gpu_memory_gigabytes=budget)
        datamodule.setup()
        datamodule.trainer = Namespace(global_rank=0, world_size=1, strategy=Namespace(root_device=device))
        loaders = [datamodule._batches(split, 10, shuffle=False) for split in ("train", "val", "test")]
        assert all(loader.labels.device == device for loader in loaders)
        devices[budget] = [loader.inputs.device.type for loader in loaders]
    assert devices[None] == devices[1.0] == ["meta"] * 3
    assert devices[0.0] == ["cpu"] * 3
    assert devices[1800 / 1e9] == ["meta", "cpu", "cpu"]  # they have 1,728, 192 and 480 bytes


def test_batches_are_equal_from_main_memory_and_from_the_device(monkeypatch):
    inputs, labels = torch.arange(60).view(20, 3), torch.arange(20)
    loader = TensorBatches(inputs, labels, EpochOrder(20, 6, shuffle=True, seed=1))
    expected = [(batch.tolist(), targets.tolist()) for batch, targets in loader]

    class Elsewhere(torch.Tensor):
        """A tensor that claims to be on another device."""

        device = torch.device("meta")

    loader.inputs = inputs.as_subclass(Elsewhere)
    assert [(batch.tolist(), targets.tolist()) for batch, targets in loader] == expected
    mapping = to_device({"ids": inputs, "mask": labels}, torch.device("cpu"))
    assert torch.equal(mapping["ids"], inputs)
