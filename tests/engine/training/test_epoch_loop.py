"""FastStep trains exactly as Lightning's own step does, and is not used where it would not."""

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loops.optimization.automatic import Closure
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.profiler import ProfilerActivity, profile

from callbacks.finite_steps import FiniteSteps
from datamodules.iris import Iris
from engine.training import epoch_loop
from engine.training.epoch_loop import HOOKS, EpochLoop, FastStep, install_loop
from lit_models.mlp import LitMLP
from tests.exactness import differences
from tests.runs import IRIS, WITHOUT_PICTURES, run

NOISY = [
    "model.dropout=0.2", "trainer.max_epochs=4", "data.batch_size=16", "trainer.log_every_n_steps=1", *WITHOUT_PICTURES,
]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["schedule={name: constant}"],
        ["schedule={name: plateau, warmup_fraction: 0.1}", "trainer.val_check_interval=3"],
        ["trainer.precision=bf16-mixed", "trainer.gradient_clip_val=0.1"],
        ["optimizer={name: sgd, lr: 0.1}", "trainer.max_steps=13"],
        ["callbacks.ema_weight_averaging={}", "callbacks.learning_rate_monitor={}"],
    ],
)
def test_weights_counters_and_curves_equal_those_of_lightnings_step(tmp_path, monkeypatch, options):
    fast = run(tmp_path / "fast", "--config", IRIS, *NOISY, *options)
    monkeypatch.setattr(epoch_loop, "supports_fast_step", lambda trainer: False)
    whole = run(tmp_path / "whole", "--config", IRIS, *NOISY, *options)
    assert differences(fast, whole) == []


def test_another_version_of_lightning_trains_with_its_own_step(tmp_path, monkeypatch, capsys):
    """`FastStep` is used only with versions that it was tested with. Weights, curves and output are the same without it."""
    fast_steps = []
    run_fast_step = FastStep.run
    monkeypatch.setattr(FastStep, "run", lambda self, *batch: (fast_steps.append(1), run_fast_step(self, *batch)))
    fast = run(tmp_path / "fast", "--config", IRIS, *NOISY)
    printed = capsys.readouterr()
    assert len(fast_steps) == 24
    monkeypatch.setattr("lightning.__version__", "2.6.99")
    own = run(tmp_path / "own", "--config", IRIS, *NOISY)
    assert len(fast_steps) == 24
    assert differences(fast, own) == []
    printed_without = capsys.readouterr()
    assert printed.err == printed_without.err == ""
    first_words = [[line.split()[0] for line in output.out.splitlines()] for output in (printed, printed_without)]
    assert first_words[0] == first_words[1]


class Recorder(Callback):
    """Records the hooks of a step in the order of the calls."""

    def __init__(self):
        self.calls = []


def recording(name):
    return lambda self, *arguments: self.calls.append(name)


for name in (*HOOKS, "on_train_epoch_start"):
    setattr(Recorder, name, recording(name))


class WithHooks(LitMLP):
    def on_before_zero_grad(self, optimizer):
        self.log("calls", 1.0, on_step=True)

    def on_after_backward(self):
        assert all(parameter.grad is not None for parameter in self.network.parameters())


class ChangedStep(LitMLP):
    def optimizer_step(self, *arguments):
        super().optimizer_step(*arguments)


class ChangedTransfer(Iris):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class WithoutIndex(LitMLP):
    def training_step(self, batch):
        return {"loss": super().training_step(batch, 0), "kept": 7}


def fitted(model=LitMLP, data=Iris, callback=None, **options):
    trainer = Trainer(
        max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", callbacks=[callback] if callback else [], **options,
    )  # fmt: skip
    install_loop(trainer, 1.0)
    trainer.fit(model((4,), 3), datamodule=data())
    return trainer


@pytest.mark.parametrize(
    ("fast", "changes"),
    [
        (True, {}),
        (True, {"model": WithHooks}),
        (True, {"model": WithoutIndex}),
        (True, {"precision": "bf16-mixed"}),
        (False, {"model": ChangedStep}),
        (False, {"data": ChangedTransfer}),
        (False, {"accumulate_grad_batches": 2}),
        (False, {"profiler": "simple"}),
    ],
)
def test_changed_steps_are_trained_by_lightnings_step(fast, changes):
    trainer = fitted(**changes)
    assert isinstance(trainer.fit_loop.epoch_loop, EpochLoop)
    assert (trainer.fit_loop.epoch_loop.fast_step is not None) == fast
    assert trainer.global_step == 3


def test_hooks_are_called_in_lightnings_order(monkeypatch):
    ours, theirs = Recorder(), Recorder()
    fitted(callback=ours)
    monkeypatch.setattr(epoch_loop, "supports_fast_step", lambda trainer: False)
    fitted(callback=theirs)
    assert ours.calls == theirs.calls
    assert all(ours.calls.count(name) == 3 for name in HOOKS)


def test_a_model_can_log_in_a_hook():
    assert float(fitted(WithHooks).callback_metrics["calls"]) == 1.0


def test_callbacks_get_the_loss_and_the_other_results_of_a_step():
    class Keeper(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.outputs = outputs

    keeper = Keeper()
    fitted(WithoutIndex, callback=keeper)
    assert keeper.outputs["kept"] == 7
    assert not keeper.outputs["loss"].requires_grad


def test_an_optimizer_may_call_the_closure_several_times():
    class WithClosure(LitMLP):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)

    class Counter(Callback):
        backward = 0

        def on_after_backward(self, trainer, pl_module):
            self.backward += 1

    counter = Counter()
    fitted(WithClosure, callback=counter)
    assert counter.backward > 3


def test_other_batches_are_moved_to_the_device():
    """The method `to` of a batch of the user's own type is called."""
    moved = []

    class Batch:
        inputs, labels = torch.randn(8, 4), torch.zeros(8, dtype=torch.int64)

        def to(self, device):
            moved.append(device)
            return self

        def __len__(self):
            return 8

    class Loader:
        def __iter__(self):
            yield Batch()

    class Objects(LightningDataModule):
        def train_dataloader(self):
            return Loader()

        def val_dataloader(self):
            return Loader()

    class Unpacking(LitMLP):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch.inputs, batch.labels), batch_idx)

    fitted(Unpacking, Objects, limit_val_batches=0)
    assert moved == [torch.device("cpu")] * 3


def test_hooks_of_an_instance_are_called():
    calls = []
    fitted(callback=LambdaCallback(on_train_batch_end=lambda *_: calls.append(1)))
    assert calls == [1] * 3


@pytest.mark.parametrize("result", [{"Loss": torch.zeros(())}, 0.5], ids=["no loss", "a number"])
def test_a_wrong_result_of_a_step_is_refused_as_by_lightning(result):
    class Wrong(LitMLP):
        def training_step(self, batch, batch_idx):
            return result

    with pytest.raises(MisconfigurationException):
        fitted(Wrong)


def test_a_step_may_be_skipped(monkeypatch):
    warned = []
    monkeypatch.setattr(Closure.warning_cache, "warn", warned.append)

    class Picky(LitMLP):
        def training_step(self, batch, batch_idx):
            return None if self.current_epoch == 1 else super().training_step(batch, batch_idx)

        def on_train_epoch_end(self):
            pass

    assert fitted(Picky).global_step == 3
    assert len(warned) == 1


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_inputs_have_the_precision_of_the_weights(precision):
    class Bare(LitMLP):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def on_train_epoch_end(self):
            pass

    assert fitted(Bare, precision=precision).fit_loop.epoch_loop.fast_step is not None


READS = ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero")


def reads(folder, config, *options):
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run(folder, "--config", config, "trainer.max_epochs=1", "callbacks.progress_line.live=false", *options)
    profiled.export_chrome_trace(str(folder / "trace.json"))  # faster than `events`, which builds a tree
    trace = (folder / "trace.json").read_text(encoding="utf-8")
    return sum(trace.count(f'"name": "{name}"') for name in READS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")  # torch 2.11
@pytest.mark.parametrize(
    ("config", "options"),
    [
        # not Adam: on a CPU, torch's Adam reads its step counts, which are tensors there
        (IRIS, ["data.batch_size=2", "trainer.gradient_clip_val=1.0", "optimizer={name: sgd, lr: 0.1}"]),
        ("configs/mnist_cnn.yaml", ["data.batch_size=2", "model.widths=[4]"]),
    ],
)
def test_a_step_reads_nothing_back_from_the_device(tmp_path, monkeypatch, small_data, config, options):
    """On a GPU each read waits for all queued work. Here reads on a CPU are counted, and FiniteSteps acts as on a GPU."""
    on_start = FiniteSteps.on_train_start

    def on_train_start(self, trainer, pl_module):
        on_start(self, trainer, pl_module)
        self._lazy = True

    # the reads of a gallery depend on the errors of the model, and those of a graph on earlier graphs
    options = [*options, "trainer.log_every_n_steps=1000", "callbacks.gallery=null", "callbacks.model_graph=null"]
    options += ["trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
    if "mnist" in config:
        options += [f"data.root={small_data}"]
    eager = [reads(tmp_path / f"eager {n}", config, f"trainer.limit_train_batches={n}", *options) for n in (10, 40)]
    monkeypatch.setattr(FiniteSteps, "on_train_start", on_train_start)
    lazy = [reads(tmp_path / f"lazy {n}", config, f"trainer.limit_train_batches={n}", *options) for n in (10, 40)]
    assert eager[1] - eager[0] >= 60  # on a CPU, FiniteSteps reads the loss and the gradient in every step
    assert lazy[1] == lazy[0]
