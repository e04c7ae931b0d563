"""Muon, and the parts of the speed-run network that begin with a look at the data."""

import pytest
import torch
from torch import nn

from datamodules.parts.augment import alternating_flip
from datamodules.parts.batches import AugmentContext
from engine.contracts import OptionError
from lit_models import cnn, optimizers
from lit_models.cnn import CNN, LitCNN, Whitening
from lit_models.parts.muon import orthogonalize


def network(widths=(8, 16)):
    return CNN(3, 10, widths, 2, False, 0.0, True, 0.1)


def stepped(net, optimizer, steps=1):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        images, labels = torch.randn(16, 3, 16, 16, generator=generator), torch.arange(16) % 10
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(1, 8, 72), (3, 16, 16), (2, 40, 9)])
def test_orthogonal_keeps_the_singular_vectors_and_brings_the_values_near_1(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made = orthogonalize(matrices, ns_steps=5)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ made @ v.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert ((diagonal > 0.6) & (diagonal < 1.3)).all()
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-3


def test_matrices_of_one_shape_are_made_orthogonal_together_and_apart_alike():
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    apart = torch.cat([orthogonalize(one[None], 3) for one in matrices])
    torch.testing.assert_close(orthogonalize(matrices, 3), apart)


def test_a_step_of_muon_is_as_long_as_the_rate_says_in_every_direction():
    torch.manual_seed(0)
    net = network()
    before = net.stages[1].conv.weight.detach().clone()
    stepped(net, optimizers.muon(net, lr=0.5))
    values = torch.linalg.svdvals((net.stages[1].conv.weight.detach() - before).flatten(1))
    assert ((values > 0.3) & (values < 0.65)).all()


def test_filters_are_held_at_rows_of_norm_1_and_the_whitening_stays():
    torch.manual_seed(0)
    net = network()
    net.whitening.fit(torch.randn(20, 3, 16, 16))
    fixed = net.whitening.weight.detach().clone()
    optimizer = optimizers.muon(net, lr=1e-6, normalize=True)
    stepped(net, optimizer, steps=2)
    for block in net.stages:
        assert block.conv.weight.norm().item() == pytest.approx(len(block.conv.weight) ** 0.5, rel=1e-3)
    assert torch.equal(net.whitening.weight, fixed)
    assert not torch.equal(net.whitening.bias, torch.zeros_like(net.whitening.bias))


def test_everything_that_is_trained_has_one_rate():
    net = network()
    optimizer = optimizers.muon(net, lr=0.3, head_lr=0.2, vector_lr=0.1)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    trained = {name: rates.pop(id(one)) for name, one in net.named_parameters() if one.requires_grad}
    assert rates == {}
    assert {rate for name, rate in trained.items() if ".conv." in name} == {0.3}
    assert trained["head.weight"] == 0.2
    assert {rate for name, rate in trained.items() if name.endswith("bias")} == {0.1}


@pytest.mark.needs("bert")
def test_layers_of_a_pretrained_network_keep_their_shares_of_the_rates():
    from lit_models.bert import LitBERT

    model = LitBERT((), 2, vocab_size=50, max_length=16, hidden_size=16, num_layers=2, num_heads=2, layer_decay=0.5)
    optimizer = optimizers.muon(model.network, lr=0.3, head_lr=0.2, vector_lr=0.1)
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    shares = model.network.lr_scales()
    assert len(set(shares.values())) > 2
    for name, one in model.network.named_parameters():
        assert min(abs(rates[id(one)] / shares.get(name, 1.0) - rate) for rate in (0.1, 0.2, 0.3)) < 1e-6, name


def test_decay_takes_the_same_share_from_all_weights():
    net = network()
    before = {name: one.detach().clone() for name, one in net.named_parameters()}
    optimizer = optimizers.muon(net, lr=1e-2, head_lr=1e-2, weight_decay=0.5)
    for one in net.parameters():
        one.grad = torch.zeros_like(one)
    for _ in range(3):
        optimizer.step()
    for name in ("stages.1.conv.weight", "head.weight"):
        torch.testing.assert_close(net.get_parameter(name).detach(), before[name] * (1 - 1e-2 * 0.5) ** 3)


def test_a_bare_step_is_nesterov_momentum_where_there_are_no_matrices():
    one, other = nn.Linear(5, 3), nn.Linear(5, 3)
    other.load_state_dict(one.state_dict())
    ours = optimizers.muon(one, head_lr=0.1, vector_lr=0.1, sgd_momentum=0.8)
    theirs = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.8, nesterov=True)
    for _ in range(4):
        inputs = torch.randn(7, 5)
        for layer, optimizer in ((one, ours), (other, theirs)):
            optimizer.zero_grad()
            layer(inputs).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(one.state_dict(), other.state_dict())


def test_whitened_patches_are_uncorrelated_with_variance_1(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = nn.functional.avg_pool2d(torch.randn(400, 3, 20, 20, generator=generator), 3, stride=1)  # neighbours alike
    layer = Whitening(3)
    monkeypatch.setattr(cnn, "WHITENING_CHUNK", 64)  # whatever pieces they are taken in
    layer.fit(images)
    outputs = layer(images)[:, :12].transpose(0, 1).flatten(1)
    covariance = outputs @ outputs.T / outputs.shape[1]
    torch.testing.assert_close(covariance, torch.eye(12), atol=0.05, rtol=0)
    torch.testing.assert_close(layer.weight[:12], -layer.weight[12:])


def test_whitening_is_measured_on_normalised_images_and_is_in_the_state():
    images = torch.randint(0, 256, (50, 3, 16, 16), dtype=torch.uint8)
    model = LitCNN((3, 16, 16), 10, widths=(8,), whitening=True)
    mean, std = torch.full((3, 1, 1), 128.0), torch.full((3, 1, 1), 70.0)
    model.initialize_from_data(images, mean, std)
    expected = Whitening(3)
    expected.fit((images.float() - mean) / std)
    torch.testing.assert_close(model.state_dict()["network.whitening.weight"], expected.weight)


def test_whitening_refuses_channels_that_depend_on_each_other():
    grey = torch.randn(50, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    with pytest.raises(OptionError, match=r"^model\.whitening: the channels .* set model\.whitening=false$"):
        Whitening(3).fit(grey)
    Whitening(1).fit(grey[:, :1])


def test_dirac_passes_its_input_on():
    net = CNN(3, 10, (4, 8), 1, False, 0.0, False, 1.0, dirac=True)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(net.stages[0].conv(images)[:, :3], images)


def test_an_image_is_mirrored_in_every_second_epoch_and_half_of_all_in_each():
    images = torch.arange(4000.0).view(-1, 1, 1, 2)
    samples = torch.randperm(2000, generator=torch.Generator().manual_seed(0))

    def mirrored(seed, epoch):
        return (
            (alternating_flip(images, AugmentContext(torch.Generator(), seed, epoch, samples)) != images)
            .any(3)
            .flatten()
        )

    flips = [mirrored(0, epoch) for epoch in range(3)]
    assert torch.equal(flips[0], ~flips[1])
    assert torch.equal(flips[0], flips[2])
    assert flips[0].float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (mirrored(1, 0) == flips[0]).float().mean().item() == pytest.approx(
        0.5, abs=0.05
    )  # another run, another half
    by_sample = flips[0][samples.argsort()].float()
    assert (by_sample[1:] == by_sample[:-1]).float().mean().item() == pytest.approx(0.5, abs=0.05)  # no pattern
