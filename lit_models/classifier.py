"""What every classifier shares: normalisation, steps, loss, metrics, optimizer.

A model is one file: a plain `nn.Module`, and a subclass of `LitClassifier` that makes it in its constructor and puts it
into ``self.network``. It lists the kinds of input it takes in ``accepts``.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection

from engine.contracts import Batch, OptionError
from engine.training.checkpoint_file import plain_values_only, verify
from engine.training.loggers import log_everywhere
from lit_models import optimizers, schedules
from lit_models.parts.metrics import MeanLoss, TrainingMeans, evaluation_metrics

# B batch, K classes


class LitClassifier(LightningModule):
    """Trains a network of logits (B, K) with cross-entropy; two classes are two logits.

    Inputs come in the units of the data: `forward` shifts and scales them by `input_mean` and `input_std`, which are part
    of every checkpoint (0 and 1 until `set_normalization`). Tokens, a mapping of tensors, go to the network as they are.

    Validation and test losses are plain cross-entropy, without smoothing, weights or penalty, so that runs can be compared.

    Args:
        input_shape: Shape of one input, without the batch: (4,) or (1, 28, 28); () for tokens.
        num_classes: K.
        class_names: Names for pictures and predictions; kept in the checkpoint.
        label_smoothing: Share of the target that is spread over all classes.
        class_weights: One weight per class in the training loss; null for all equal.
        l1_penalty: Times the sum of absolute weights, without biases and norms, is added to the training loss.
        compile: Run the network through torch.compile; checkpoints stay the same.
        optimizer: {"name": ..., **options} of `lit_models.optimizers`; null for Adam.
        schedule: {"name": ..., **options} of `lit_models.schedules`; null for a constant rate.
    """

    choosable: ClassVar[bool] = False  # a base class, which no config can name
    accepts: ClassVar[tuple[str, ...]] = ()
    network: nn.Module

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        class_names: Sequence[str] | None = None,
        label_smoothing: Annotated[float, ">= 0, < 1"] = 0.0,
        class_weights: Annotated[Sequence[float], ">= 0"] | None = None,
        l1_penalty: Annotated[float, ">= 0"] = 0.0,
        compile: bool = False,
        optimizer: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._is_compiled = False
        if class_weights is not None and len(class_weights) != num_classes:
            raise OptionError(
                f"model.class_weights: {len(class_weights)} weights for {num_classes} classes; give one per class"
            )
        per_channel = (*input_shape[:1], *[1] * (len(input_shape) - 1))  # (D,) or (C, 1, 1), or ()
        self.input_mean: Tensor
        self.input_std: Tensor
        self.register_buffer("input_mean", torch.zeros(per_channel))
        self.register_buffer("input_std", torch.ones(per_channel))
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)
        self.train_means = TrainingMeans()
        self.val_loss, self.val_metrics = MeanLoss(), evaluation_metrics(num_classes)
        self.test_loss, self.test_metrics = MeanLoss(), evaluation_metrics(num_classes)

    @property
    def class_names(self) -> list[str]:
        """K names; the numbers of the classes if the data has no names."""
        return list(self.hparams["class_names"] or map(str, range(self.hparams["num_classes"])))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, map_location: Any = None, **hyperparameters: Any) -> Self:  # type: ignore[override]
        """The model of a checkpoint of a run; hyperparameters that are given replace those in it.

        Raises:
            BrokenCheckpointError: if the file is missing, damaged, no checkpoint, or an address.
        """
        verify(Path(checkpoint_path))
        if "weights_only" in hyperparameters:
            raise TypeError("weights_only cannot be chosen: nothing but tensors and plain values is ever loaded")
        with plain_values_only(checkpoint_path):
            return super().load_from_checkpoint(checkpoint_path, map_location, weights_only=True, **hyperparameters)

    def setup(self, stage: str) -> None:
        if self.hparams["compile"] and not self._is_compiled:
            self.network.compile()  # in place, because a wrapper would rename every key of the state
            self._is_compiled = True

    def set_normalization(self, mean: Tensor, std: Tensor) -> None:
        """Shift and scale every input from now on, per feature (D,) or per channel (C, 1, 1)."""
        self.input_mean.copy_(mean)
        self.input_std.copy_(std)

    def initialize_from_data(self, inputs: Any, mean: Tensor, std: Tensor) -> None:
        """All that begins with a look at the training inputs (N, *input_shape): here the normalisation."""
        self.set_normalization(mean, std)

    def forward(self, inputs: Any) -> Tensor:
        """Logits (B, K) of a batch in the units of the data, of any number type; or of tokens as a tokenizer gives them."""
        if isinstance(inputs, Mapping):
            return self.network(inputs)
        return self.network(self.normalized(inputs))

    def normalized(self, inputs: Tensor) -> Tensor:
        """Inputs (B, *input_shape) of any number type, shifted and scaled."""
        return (inputs.to(self.input_mean.dtype) - self.input_mean) / self.input_std

    def attribution_inputs(self, inputs: Any) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """What an explanation of one sample's logits goes by: here its normalised values, from the training mean on.

        Args:
            inputs: Of one sample, in a batch of its own.

        Returns:
            The sample (1, ...) and what it is compared with (1, ...), both as the network's first layer takes them, and the
            function from any such batch to logits (B, K).
        """
        sample = self.normalized(inputs)
        return sample, torch.zeros_like(sample), self.network.forward

    def features(self, inputs: Any) -> Tensor | None:
        """What the last linear layer is given (B, F), for inputs as in `forward`; null if a network does not end in one."""
        linear = [one for one in self.network.modules() if isinstance(one, nn.Linear)]
        seen: list[Tensor] = []
        if not linear or linear[-1].out_features != self.hparams["num_classes"]:
            return None
        hook = linear[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:  # `forward` of the network, because one that is compiled calls no hooks
            self.network.forward(inputs if isinstance(inputs, Mapping) else self.normalized(inputs))
        finally:
            hook.remove()
        return seen[-1].flatten(1) if seen else None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, labels = batch
        logits = _at_least_float32(self(inputs))
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        loss = F.cross_entropy(logits, labels, weights, label_smoothing=self.hparams["label_smoothing"])
        if self.hparams["l1_penalty"] > 0:
            loss = loss + self.hparams["l1_penalty"] * self._absolute_weights()
        self.train_means.update(loss.detach(), logits.detach(), labels)
        self._log_step(loss, batch_idx)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, self.val_loss, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, self.test_loss, self.test_metrics)

    def on_train_epoch_end(self) -> None:
        loss, accuracy = self.train_means.compute()
        self.log_dict({"train/loss": loss, "train/accuracy": accuracy})
        self.train_means.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val", self.val_loss, self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test", self.test_loss, self.test_metrics)

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[dict[str, Any]]]:  # type: ignore[override]
        make_optimizer, options = _choice(optimizers, self.hparams["optimizer"], "adam")
        if "fused" in signature(make_optimizer).parameters and self._clips_in_mixed_precision():
            options["fused"] = options.get("fused") or False  # Lightning cannot clip for a fused optimizer there
        optimizer = make_optimizer(self.network, **options)
        make_schedule, options = _choice(schedules, self.hparams["schedule"], "constant")
        entries = make_schedule(optimizer, self.trainer.estimated_stepping_batches, **options)
        for entry in entries:
            if "monitor" in entry:  # it has no new value between two validations
                entry["frequency"] = self.trainer.check_val_every_n_epoch or 1
        return [optimizer], entries

    def _clips_in_mixed_precision(self) -> bool:
        return bool(self.trainer.gradient_clip_val) and "mixed" in str(self.trainer.precision)

    def _evaluate(self, batch: Batch, loss: MeanLoss, metrics: MetricCollection) -> Tensor:
        """Update the metrics of a stage; logits (B, K) are for callbacks."""
        inputs, labels = batch
        logits = _at_least_float32(self(inputs))
        loss.update(F.cross_entropy(logits, labels), len(labels))
        metrics.update(logits, labels)
        return logits

    def _log_evaluation(self, stage: Literal["val", "test"], loss: MeanLoss, metrics: MetricCollection) -> None:
        values = metrics.compute()
        by_class = values.pop("class_accuracy")
        self.log_dict({f"{stage}/loss": loss.compute(), **{f"{stage}/{name}": value for name, value in values.items()}})
        if stage == "test":
            accuracies = dict(zip(self.class_names, by_class, strict=True))
            # `callbacks.confusion_matrix` draws them, because a hundred curves would say less
            self.log_dict({f"test_class_accuracy/{name}": value for name, value in accuracies.items()}, logger=False)
        loss.reset()
        metrics.reset()

    def _log_step(self, loss: Tensor, batch_idx: int) -> None:
        """A point of the step curves; straight to the logger, because `self.log` costs as much as a small step."""
        if not self.trainer.loggers or batch_idx % self.trainer.accumulate_grad_batches:
            return
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            log_everywhere(self.trainer, {"train/loss_step": loss.item(), "train/lr": rate})

    def _absolute_weights(self) -> Tensor:
        weights = (one for one in self.network.parameters() if one.ndim > 1 and one.requires_grad)
        return torch.stack([one.abs().sum() for one in weights]).sum()


def _at_least_float32(logits: Tensor) -> Tensor:
    """A softmax of half-precision logits loses digits that the loss needs."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _choice(module: Any, section: Mapping[str, Any] | None, default: str) -> tuple[Any, dict[str, Any]]:
    """The function that a section names, and its options."""
    options = dict(section or {"name": default})
    return getattr(module, options.pop("name")), options
