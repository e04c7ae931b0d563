"""Losses, optimizers and schedules do what their options say."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

import train
from datamodules.parts.batches import EpochOrder, TensorBatches
from datamodules.parts.statistics import mean_and_std
from engine.contracts import OptionError
from engine.training import hardware
from engine.training.hardware import precision_for
from lit_models import optimizers, schedules
from lit_models.cnn import LitCNN
from lit_models.mlp import LitMLP
from lit_models.parts.metrics import CalibrationError, WeightedMean
from tests.contracts import trainer
from tests.runs import WITHOUT_PICTURES, events, figures, run

GENERATOR = torch.Generator().manual_seed(0)
INPUTS, LABELS = torch.randn(64, 4, generator=GENERATOR), torch.arange(64) % 3


def batches(shuffle: bool = False) -> TensorBatches:
    return TensorBatches(INPUTS, LABELS, EpochOrder(64, 16, shuffle))


def mlp(**options) -> LitMLP:
    torch.manual_seed(0)
    return LitMLP((4,), 3, **options)


def fitted(model: LitMLP, tmp_path, **options):
    fit = trainer(tmp_path, **options)
    fit.fit(model, batches(), batches())
    return fit


def training_loss(model: LitMLP, tmp_path) -> float:
    """Of the first batch, before any step."""
    model.hparams["optimizer"] = {"name": "sgd", "lr": 1e-12}
    fit = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    fit.fit(model, batches(), batches())
    return fit.callback_metrics["train/loss"].item()


def test_the_tutorial_network_is_what_the_options_say():
    assert [tuple(p.shape) for p in LitMLP((1, 28, 28), 10, hidden_sizes=[500]).parameters()] == [
        (500, 784), (500,), (10, 500), (10,),
    ]  # fmt: skip
    options = {"hidden_sizes": [5], "activation": "tanh", "normalization": "layer", "dropout": 0.5}
    layers = [type(layer) for layer in mlp(**options).network.layers]
    assert layers == [nn.Linear, nn.LayerNorm, nn.Tanh, nn.Dropout, nn.Linear]
    assert [type(layer) for layer in mlp(hidden_sizes=[]).network.layers] == [nn.Linear]


def test_a_stem_halves_the_image_before_the_stages():
    torch.manual_seed(0)
    plain, halved = (LitCNN((3, 16, 16), 2, widths=[4, 8], stem=stem).network for stem in (False, True))
    images = torch.randn(2, 3, 16, 16)
    assert plain.stages(images).shape == (2, 8, 4, 4)
    assert halved.stages[0](images).shape == (2, 4, 8, 8)
    assert halved.stages(images).shape == (2, 8, 2, 2)
    assert LitCNN((3, 16, 16), 2, widths=[4, 4], stem=True, whitening=True)(images).shape == (2, 2)
    with pytest.raises(OptionError, match="set 1 to 3 widths"):
        LitCNN((3, 16, 16), 2, widths=[4] * 4, stem=True)


def test_a_cnn_with_too_many_stages_says_how_many_fit():
    with pytest.raises(
        OptionError, match=r"model.widths: 5 stages do not fit images of 28x28 pixels, .*; set 1 to 4 widths"
    ):
        LitCNN((1, 28, 28), 10, widths=[8] * 5)
    assert LitCNN((1, 16, 28), 10, widths=[4] * 4)(torch.zeros(2, 1, 16, 28)).shape == (2, 10)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.float64, torch.float16])
def test_inputs_of_any_number_type_are_normalised_by_the_model(kind):
    model = LitCNN((3, 8, 8), 2, widths=[4]).eval()
    mean, std = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1), torch.tensor([2.0, 4.0, 8.0]).view(3, 1, 1)
    model.set_normalization(mean, std)
    images = torch.arange(2 * 3 * 64).view(2, 3, 8, 8) % 50
    assert torch.equal(model(images.to(kind)), model.network((images.float() - mean) / std))


def test_residual_blocks_add_their_input():
    torch.manual_seed(0)
    plain, residual = (LitCNN((1, 8, 8), 3, widths=[4], residual=one).eval() for one in (False, True))
    residual.load_state_dict(plain.state_dict())
    images = torch.randn(2, 1, 8, 8)
    first, second = residual.network.stages
    assert torch.equal(second(first(images)), first(images) + plain.network.stages[1](first(images)))


def test_smoothing_weights_and_penalty_change_the_training_loss_only(tmp_path):
    logits, labels = mlp()(INPUTS[:16]), LABELS[:16]
    weights = torch.tensor([1.0, 2.0, 0.0])
    penalty = sum(p.abs().sum() for p in mlp().parameters() if p.ndim > 1)
    expected = {
        (("label_smoothing", 0.2),): F.cross_entropy(logits, labels, label_smoothing=0.2),
        (("class_weights", (1.0, 2.0, 0.0)),): F.cross_entropy(logits, labels, weights),
        (("l1_penalty", 0.1),): F.cross_entropy(logits, labels) + 0.1 * penalty,
    }
    for options, loss in expected.items():
        model = mlp(**dict(options))
        assert training_loss(model, tmp_path) == pytest.approx(loss.item(), rel=1e-5)
        val_loss = model.trainer.callback_metrics["val/loss"].item()
        assert val_loss == pytest.approx(F.cross_entropy(mlp()(INPUTS), LABELS).item(), rel=1e-5)


def test_class_weights_must_be_one_per_class():
    with pytest.raises(ValueError, match=r"model.class_weights: 2 weights for 3 classes; give one per class"):
        mlp(class_weights=[1.0, 2.0])


def test_metrics_are_exact(tmp_path):
    model = mlp(class_names=["a", "b", "c"])
    fit = trainer(tmp_path)
    fit.test(model, batches(), verbose=False)
    predicted = model.eval()(INPUTS).argmax(1)
    metrics = fit.callback_metrics
    assert metrics["test/accuracy"].item() == pytest.approx((predicted == LABELS).float().mean().item())
    f1 = []
    for label, name in enumerate("abc"):
        hit = ((predicted == label) & (label == LABELS)).sum().item()
        f1.append(2 * hit / ((predicted == label).sum().item() + (label == LABELS).sum().item()))
        assert metrics[f"test_class_accuracy/{name}"].item() == pytest.approx(hit / (label == LABELS).sum().item())
    assert metrics["test/f1"].item() == pytest.approx(sum(f1) / 3)


def test_a_second_epoch_starts_its_metrics_anew(tmp_path):
    model = mlp(optimizer={"name": "sgd", "lr": 1e-12})
    one = fitted(model, tmp_path, max_epochs=1).callback_metrics
    two = fitted(mlp(optimizer={"name": "sgd", "lr": 1e-12}), tmp_path, max_epochs=2).callback_metrics
    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/f1"):
        assert one[name].item() == pytest.approx(two[name].item(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiling_changes_neither_logits_nor_checkpoint(tmp_path):
    plain, compiled = mlp(dropout=0.1), mlp(dropout=0.1, compile=True)
    for model in (plain, compiled):
        fit = fitted(model, tmp_path, max_epochs=1)
        fit.save_checkpoint(tmp_path / f"{model.hparams['compile']}.ckpt")
    assert list(torch.load(tmp_path / "True.ckpt", weights_only=True)["state_dict"]) == list(plain.state_dict())
    again = LitMLP.load_from_checkpoint(tmp_path / "True.ckpt", map_location="cpu", compile=False).eval()
    torch.testing.assert_close(again(INPUTS), compiled.eval()(INPUTS))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_model_is_resumed_tested_and_copied(tmp_path):
    options = {"hidden_sizes": [8], "optimizer": {"name": "sgd", "lr": 0.1}}
    plain, first, second = mlp(**options), mlp(compile=True, **options), mlp(compile=True, **options)
    fitted(plain, tmp_path, max_epochs=2)
    fitted(first, tmp_path, max_epochs=1).save_checkpoint(tmp_path / "first.ckpt")
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(second, batches(), batches(), ckpt_path=tmp_path / "first.ckpt", weights_only=True)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value)
    logits = plain.eval()(INPUTS)
    fit.test(second, batches(), verbose=False)
    expected = F.cross_entropy(logits, LABELS).item()
    assert fit.callback_metrics["test/loss"].item() == pytest.approx(expected, rel=1e-5)
    copied = copy.deepcopy(second).eval()
    torch.testing.assert_close(copied(INPUTS), logits)
    fitted(copied.train(), tmp_path, max_epochs=1)
    assert not torch.equal(copied.network.layers[0].weight, second.network.layers[0].weight)


@pytest.mark.slow
def test_compiled_model_passes_the_checks_and_its_graph_is_drawn(tmp_path, capsys):
    options = ["model.compile=true", "model.hidden_sizes=[8]", "trainer.max_epochs=2"]
    folder = run(tmp_path, "--config", "configs/iris_mlp.yaml", *options)
    assert events(folder).Tags()["graph"]
    assert figures(folder)["steps"] == 6
    capsys.readouterr()
    assert train.main(["--config", "configs/iris_mlp.yaml", *options, f"run.root={tmp_path}", "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok       gradients") for line in lines)
    assert not any(line.startswith(("WRONG", "ModelGraph failed")) for line in lines)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "muon"])
def test_every_optimizer_learns_and_decays_weights_only(name, tmp_path):
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = getattr(optimizers, name)(network, weight_decay=0.5)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decays[id(p)] for p in network.parameters() if p.ndim > 1} == {0.5}
    assert {decays[id(p)] for p in network.parameters() if p.ndim == 1} == {0.0}
    metrics = fitted(mlp(optimizer={"name": name}), tmp_path, max_epochs=20).callback_metrics
    assert metrics["val/loss"] < 1.09


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("name", "plain", "options"),
    [
        ("sgd", torch.optim.SGD, {}),
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        ("adam", torch.optim.Adam, {}),
        ("adam", torch.optim.Adam, {"weight_decay": 0.1}),
        ("adamw", torch.optim.AdamW, {"weight_decay": 0.1}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.9}),
    ],
    ids=str,
)
def test_the_chosen_implementation_of_an_optimizer_agrees_with_the_plain_one(name, plain, options, dtype):
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(17, 33, bias=False), nn.Linear(33, 5, bias=False)).to(dtype)
    theirs = copy.deepcopy(ours)
    pairs = [
        (ours, getattr(optimizers, name)(ours, lr=0.05, **options)),
        (theirs, plain(theirs.parameters(), lr=0.05, foreach=False, **options)),
    ]
    for step in range(5):
        for network, optimizer in pairs:
            generator = torch.Generator().manual_seed(step)
            for parameter in network.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
            optimizer.step()
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7, equal_nan=True)


def test_fused_is_refused_where_it_is_wrong():
    with pytest.raises(
        OptionError, match=r"optimizer.fused: computes wrong updates of torch.bfloat16 parameters on a CPU"
    ):
        optimizers.sgd(nn.Linear(2, 2).bfloat16(), fused=True)


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        ("{name: sgd, lr: 0.1, momentum: 0.9}", "bf16-mixed"),
        *(
            pytest.param("{name: sgd, lr: 0.1, momentum: 0.9}", each, marks=pytest.mark.slow)
            for each in ("32-true", "bf16-true", "64-true")
        ),
        pytest.param("{name: adamw}", "bf16-true", marks=pytest.mark.slow),
    ],
)
def test_a_run_without_a_fused_optimizer_is_the_same(optimizer, precision, small_data, tmp_path):
    options = [
        "--config", "configs/mnist_cnn.yaml", f"data.root={small_data}", "data.batch_size=64", "model.widths=[4, 8]",
        f"optimizer={optimizer}", f"trainer.precision={precision}", "trainer.max_epochs=2", *WITHOUT_PICTURES,
    ]  # fmt: skip
    chosen = figures(run(tmp_path / "chosen", *options))
    plain = figures(run(tmp_path / "plain", *options, "optimizer.fused=false"))
    assert chosen["test/loss"] == pytest.approx(plain["test/loss"], rel=1e-3)


def calibration_error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The expected calibration error with 15 bins, summed up in float64."""
    confidences, predicted = logits.double().softmax(1).max(1)
    bins = (confidences * 15).long().clamp(max=14)
    gaps = torch.zeros(15, dtype=torch.float64).index_add_(0, bins, (predicted == labels).double() - confidences)
    return (gaps.abs().sum() / len(labels)).item()


@pytest.mark.parametrize("batch_size", [1000, 7777])
def test_calibration_error_is_exact_for_many_samples(batch_size):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (300_000,), generator=generator)
    logits = torch.randn(300_000, 3, generator=generator) + 2 * F.one_hot(labels, 3)
    metric = CalibrationError()
    for batch in range(0, 300_000, batch_size):
        metric.update(logits[batch : batch + batch_size], labels[batch : batch + batch_size])
    assert metric.compute().item() == pytest.approx(calibration_error(logits, labels), rel=1e-6)


def test_options_that_contradict_each_other(tmp_path):
    with pytest.raises(OptionError, match=r"optimizer.nesterov: needs a momentum above 0; set optimizer.momentum=0.9"):
        fitted(mlp(optimizer={"name": "sgd", "nesterov": True}), tmp_path, max_epochs=1)
    with pytest.raises(OptionError, match=r"optimizer.betas: \[0.9\] has 1 values; give two"):
        fitted(mlp(optimizer={"name": "adam", "betas": [0.9]}), tmp_path, max_epochs=1)
    with pytest.raises(OptionError, match=r"schedule: the number of steps must be known; set trainer.max_epochs"):
        fitted(mlp(schedule={"name": "cosine"}), tmp_path, max_epochs=-1)


def rates(name: str, total: int = 100, **options) -> list[float]:
    """The learning rate of every step, at a peak of 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    (entry,) = getattr(schedules, name)(optimizer, total, **options)
    assert entry["interval"] == "step"
    seen = []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        entry["scheduler"].step()
    return seen


def test_constant_cosine_linear_step():
    assert schedules.constant(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 100) == []  # nothing to do
    assert rates("cosine")[0] == 1.0
    assert rates("cosine")[50] == pytest.approx(0.5)
    assert rates("cosine", final_fraction=0.1)[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates("linear")[25] == pytest.approx(0.75)
    assert rates("linear", final_fraction=0.5)[50] == pytest.approx(0.75)
    drops = rates("step", milestones=[0.5, 0.75], factor=0.1)
    assert (drops[49], drops[50], drops[75]) == (1.0, pytest.approx(0.1), pytest.approx(0.01))


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "step"])
def test_warm_up_rises_in_a_line_and_then_the_schedule_begins(name):
    seen = rates(name, warmup_fraction=0.2)
    assert seen[:20] == pytest.approx([(i + 1) / 21 for i in range(20)])
    assert seen[20] == pytest.approx(1.0)
    assert max(seen) <= 1.0


def test_one_cycle_rises_and_falls():
    seen = rates("one_cycle", warmup_fraction=0.4, initial_fraction=0.1, final_fraction=0.01)
    assert seen[0] == pytest.approx(0.1)
    assert seen[40] == pytest.approx(1.0)
    assert seen[-1] == pytest.approx(0.01, abs=2e-3)
    assert seen[:41] == sorted(seen[:41])
    assert seen[40:] == sorted(seen[40:], reverse=True)


def test_plateau_warms_up_and_then_drops_when_nothing_improves(tmp_path):
    options = {"name": "plateau", "warmup_fraction": 0.25, "patience": 0, "factor": 0.5}
    fit = fitted(mlp(optimizer={"name": "sgd", "lr": 1e-12}, schedule=options), tmp_path, max_epochs=4)
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-12 * 0.5**3, rel=1e-5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    warmup, drop = (
        one["scheduler"] for one in schedules.plateau(optimizer, 100, warmup_fraction=0.2, monitor="val/f1")
    )
    assert drop.mode == "max"
    seen = []
    for _ in range(25):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warmup.step()
    assert seen == pytest.approx([min(1.0, (i + 1) / 21) if i < 20 else 1.0 for i in range(25)], rel=1e-5)


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "32-true"), ((8, 0), "bf16-mixed"), ((9, 0), "bf16-mixed")]
)
def test_precision_on_a_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert [precision_for(one, "auto") for one in ("auto", "gpu", "cuda")] == [expected] * 3


@pytest.mark.parametrize(
    ("features", "expected"),
    [({}, "32-true"), ({"amx_bf16": True}, "bf16-mixed"), ({"avx512_bf16": True}, "bf16-mixed")],
)
def test_precision_on_a_cpu(monkeypatch, features, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "cpu_features", lambda: features)
    assert [precision_for(one, "auto") for one in ("auto", "cpu", "tpu")] == [expected, expected, "32-true"]


def test_a_loss_of_ln_k_for_a_network_that_knows_nothing():
    model = mlp()
    nn.init.zeros_(model.network.layers[-1].weight)
    nn.init.zeros_(model.network.layers[-1].bias)
    assert F.cross_entropy(model(INPUTS), LABELS).item() == pytest.approx(math.log(3))


def test_the_mean_of_a_loss_is_over_samples():
    from lit_models.parts.metrics import WeightedMean

    mean = WeightedMean()
    mean.update(torch.tensor(1.0), 7)
    mean.update(torch.tensor(2.0), 8)
    assert mean.compute().item() == pytest.approx(23 / 15)


def test_the_calibration_error_does_not_depend_on_the_batches():
    """Logits of a small batch may all lie between 0 and 1, as probabilities do."""
    logits = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    found = []
    for size in (1, 7, 60):
        metric = CalibrationError()
        for rows in torch.arange(60).split(size):
            metric.update(logits[rows], rows % 3)
        found.append(metric.compute().item())
    expected = multiclass_calibration_error(logits.softmax(1), torch.arange(60) % 3, 3, n_bins=15).item()
    assert found == pytest.approx([expected] * 3)


def test_a_mean_counts_more_samples_than_float32_can():
    mean = WeightedMean()
    for weight in (2**24, 1, 1, 1):
        mean.update(torch.tensor(1.0), weight)
    assert mean.weight == 2**24 + 3


def test_calibration_error_of_logits_that_are_not_numbers():
    metric = CalibrationError()
    metric.update(torch.full((2, 3), float("nan")), torch.tensor([0, 1]))
    assert metric.compute() == 0.5  # one of two predictions is right, with no confidence


def test_an_empty_batch_changes_no_mean():
    mean = WeightedMean()
    mean.update(torch.tensor(2.0), 3)
    mean.update(torch.tensor(float("nan")), 0)  # the mean over no samples
    assert mean.compute() == 2.0


def test_a_larger_norm_eps_bounds_the_noise_of_drawings_in_bf16():
    """Most patches of a drawing are constant. Batch normalization divides their rounding errors by a variance near 0."""
    images, labels = torch.full((24, 3, 32, 32), 255, dtype=torch.uint8), torch.arange(24) % 3
    for number, image in enumerate(images):
        image[:, 4 + number % 5 : 8 + number % 5, 3 + number % 3 * 8 : 5 + number % 3 * 8] = 0
    gradients = {}
    for norm_eps in (1e-5, 1e-3):
        torch.manual_seed(0)
        model = LitCNN((3, 32, 32), 3, widths=[64, 128, 256], dirac=True, norm_scale=False, norm_eps=norm_eps)
        model.set_normalization(*mean_and_std(images))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        shifts = [
            weight.grad.abs().max() for name, weight in model.network.named_parameters() if name.endswith("norm.bias")
        ]
        gradients[norm_eps] = float(max(shifts))
    assert gradients[1e-5] > 20 * gradients[1e-3], gradients
