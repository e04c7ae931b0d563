"""Base class of all models: normalization of inputs, training and evaluation steps, loss, metrics and optimizer.

A model is one file with a plain `nn.Module` and a subclass of `LitClassifier`. The constructor of the subclass assigns the
module to ``self.network``. The class attribute ``accepts`` lists the modalities that the model supports.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torchmetrics import MetricCollection

from engine.contracts import Batch, OptionError, PrunableLayer, TrainingBatch
from engine.training.checkpoint_file import plain_values_only, verify
from engine.training.loggers import log_everywhere
from engine.training.same_data import check_same_data
from lit_models import optimizers, schedules
from lit_models.parts.distillation import Teacher, distillation_loss
from lit_models.parts.metrics import CalibrationError, TrainingMeans, WeightedMean, evaluation_metrics

# N samples, B batch, C channels, D features, F inputs of the last linear layer, M members of an ensemble, K classes


class LitClassifier(LightningModule):
    """Trains a network that returns logits (B, K) with cross-entropy. A binary problem has K = 2.

    Inputs have the units of the data. `forward` subtracts `input_mean` and divides by `input_std`, which are stored in every
    checkpoint (0 and 1 until `set_normalization` is called). Tokens (a mapping of tensors) are passed on unchanged.

    Validation and test losses are plain cross-entropy without smoothing, weights or penalty, so that runs are comparable.

    In evaluation mode, `forward` divides the logits by `temperature`. It is 1 until `engine.training.calibration` fits it.

    Args:
        input_shape: Shape of one input without the batch dimension, such as (4,) or (1, 28, 28); () for tokens.
        num_classes: Number of classes K.
        class_names: Class names in pictures and predictions, stored in the checkpoint; None for the class numbers.
        label_smoothing: Fraction of the target that is spread evenly over all classes.
        columns: For a table: the names of the columns, each with the names of its categories, or [] for numbers. A category
            has the code 1 + its index; 0 and NaN are missing values. None if the inputs are not a table.
        class_weights: One weight per class in the training loss; balanced for weights that are inversely proportional to the
            number of training samples; null for equal weights.
        l1_penalty: Factor of the sum of absolute weights (without biases and normalization scales) in the training loss.
        teacher: Run whose trained model teaches this model: CONFIG/NAME, its folder or a checkpoint; null for no teacher.
        teacher_weight: Weight of the divergence from the teacher in the training loss. The cross-entropy has the weight
            1 - teacher_weight.
        teacher_temperature: Divides the logits of teacher and student in the divergence. A higher temperature gives more
            weight to unlikely classes.
        compile: Run the network with torch.compile. Checkpoints are not affected.
        start_from: Run whose weights, with their normalization, are the initial weights: CONFIG/NAME, its folder or a
            checkpoint; null for random weights. `train.py` loads them.
        optimizer: {"name": ..., **options} of a function in `lit_models.optimizers`; None for Adam.
        schedule: {"name": ..., **options} of a function in `lit_models.schedules`; None for a constant learning rate.
    """

    choosable: ClassVar[bool] = False  # a config cannot name the base class
    accepts: ClassVar[tuple[str, ...]] = ()
    # options that do not affect predictions for given weights; they may differ from those of the run in `start_from`
    training_options: ClassVar[tuple[str, ...]] = (
        "label_smoothing", "class_weights", "l1_penalty", "teacher", "teacher_weight", "teacher_temperature", "compile",
        "start_from", "optimizer", "schedule",
    )  # fmt: skip
    num_members: int = 1  # M; a network with several members returns logits (B, M, K)
    network: nn.Module

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        class_names: Sequence[str] | None = None,
        columns: Mapping[str, Sequence[str]] | None = None,
        label_smoothing: Annotated[float, ">= 0, < 1"] = 0.0,
        class_weights: Annotated[Sequence[float], ">= 0"] | Literal["balanced"] | None = None,
        l1_penalty: Annotated[float, ">= 0"] = 0.0,
        teacher: str | None = None,
        teacher_weight: Annotated[float, ">= 0, <= 1"] = 0.9,
        teacher_temperature: Annotated[float, "> 0"] = 2.0,
        compile: bool = False,
        start_from: str | None = None,
        optimizer: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if class_weights == "balanced":
            class_weights = [1.0] * num_classes  # until `balance_classes` is called
        if class_weights is not None and len(class_weights) != num_classes:
            raise OptionError(
                f"model.class_weights: {len(class_weights)} weights for {num_classes} classes; give one per class"
            )
        per_channel = (*input_shape[:1], *[1] * (len(input_shape) - 1))  # (D,) or (C, 1, 1), or ()
        self.input_mean: Tensor
        self.input_std: Tensor
        self.register_buffer("input_mean", torch.zeros(per_channel))
        self.register_buffer("input_std", torch.ones(per_channel))
        self.temperature: Tensor
        self.register_buffer("temperature", torch.ones(()))
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)  # (K,)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)
        self.train_means = TrainingMeans()
        self.val_loss, self.val_metrics = WeightedMean(), evaluation_metrics(num_classes)
        self.test_loss, self.test_metrics = WeightedMean(), evaluation_metrics(num_classes)
        self.test_uncalibrated = CalibrationError()
        self.teacher: Teacher | None = None  # loaded by `setup`, because only training needs it

    @property
    def class_names(self) -> list[str]:
        """K names. The class numbers if the data has no names."""
        return list(self.hparams["class_names"] or map(str, range(self.hparams["num_classes"])))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, map_location: Any = None, **hyperparameters: Any) -> Self:  # type: ignore[override]
        """Load the model of a run. It needs no config and no data.

        The weights are float32, or float64 if the run was trained with ``trainer.precision=64-true``.

        Args:
            checkpoint_path: A local file.
            map_location: Device of the weights; None for the device on which they were saved.
            hyperparameters: Replace the hyperparameters in the checkpoint.

        Raises:
            BrokenCheckpointError: if the file is missing, damaged, or not a checkpoint.
        """
        verify(Path(checkpoint_path))
        if "weights_only" in hyperparameters:
            raise TypeError("weights_only cannot be chosen: only tensors and plain values are loaded")
        with plain_values_only(checkpoint_path):
            return super().load_from_checkpoint(checkpoint_path, map_location, weights_only=True, **hyperparameters)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # FSDP has loaded and removed it before
            state = checkpoint["state_dict"]
            state.setdefault("temperature", torch.ones(()))  # old checkpoints have none
            if state["input_mean"].dtype == torch.float64:  # a run in 64-true, whose weights float32 would round
                self.double()

    def setup(self, stage: str) -> None:
        if self.hparams["compile"]:
            self.network.compile()  # in place, because a wrapper would rename the keys of the state; a second call is free
        if stage == "fit" and self.hparams["teacher"] is not None:
            self.teacher = Teacher.load(self.hparams["teacher"])
            theirs, datamodule = self.teacher.model.hparams, self.trainer.datamodule  # type: ignore[attr-defined]
            check_same_data("model.teacher", self.teacher.folder, theirs, self.hparams, datamodule)

    def on_fit_start(self) -> None:
        if self.teacher is not None:
            self.teacher.model.to(self.device, self.input_mean.dtype)
            compute_logits = getattr(self.trainer.datamodule, "teacher_logits", None)  # type: ignore[attr-defined]
            # a trial run with a few batches does not need the logits of all samples
            if compute_logits is not None and self.trainer.limit_train_batches == 1.0:
                with self.trainer.precision_plugin.forward_context():
                    self.teacher.logits = compute_logits(self.teacher)

    def on_train_epoch_start(self) -> None:
        if self.teacher is not None and hasattr(self.trainer.train_dataloader, "teacher_logits"):
            self.trainer.train_dataloader.teacher_logits = self.teacher.logits  # type: ignore[union-attr]

    def set_normalization(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and standard deviation of the inputs, per feature (D,) or per channel (C, 1, 1)."""
        self.input_mean.copy_(mean)
        self.input_std.copy_(std)

    def balance_classes(self, counts: Tensor) -> None:
        """Set the class weights if they are "balanced".

        Args:
            counts: Number of training samples of each class (K,).
        """
        if self.hparams["class_weights"] == "balanced":
            assert self.class_weights is not None
            self.class_weights.copy_(counts.sum() / (len(counts) * counts.clamp(min=1)))

    def initialize_from_data(self, inputs: Any, mean: Tensor, std: Tensor) -> None:
        """Set everything that depends on the training data: here the normalization.

        Args:
            inputs: All training inputs (N, *input_shape).
            mean: Per feature (D,) or per channel (C, 1, 1).
            std: Per feature (D,) or per channel (C, 1, 1).
        """
        self.set_normalization(mean, std)

    def initialize_without_data(self) -> None:
        """Called instead of `initialize_from_data` if the datamodule brings its own DataLoaders.

        Raises:
            OptionError: if an option of the model needs all training samples.
        """
        if self.hparams["class_weights"] == "balanced":
            raise OptionError("model.class_weights: balanced needs a datamodule with splits; give one weight per class")

    def forward(self, inputs: Any) -> Tensor:
        """Return the logits (B, K) of inputs (B, *input_shape) of any dtype, or of tokens as a tokenizer returns them."""
        logits = self.network(self.normalized(inputs))
        logits = logits if self.num_members == 1 else mean_of_members(logits)
        return logits if self.training else _at_least_float32(logits) / self.temperature

    def normalized(self, inputs: Any) -> Any:
        """Return inputs (B, *input_shape) of any dtype as the network gets them. Tokens do not change."""
        if isinstance(inputs, Mapping):
            return inputs
        return (inputs.to(self.input_mean.dtype) - self.input_mean) / self.input_std

    def attribution_inputs(self, inputs: Any) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return what integrated gradients need to explain the logits of one sample.

        Args:
            inputs: A batch with one sample.

        Returns:
            The sample (1, ...) as the first layer gets it; a baseline of the same shape, here the mean of the training data;
            and a function that maps a batch of such inputs to logits (B, K).
        """
        sample = self.normalized(inputs)
        return sample, torch.zeros_like(sample), self.network.forward

    def features(self, inputs: Any) -> Tensor | None:
        """Return the inputs (B, F) of the last linear layer. None if the network does not end with a linear layer.

        Args:
            inputs: As in `forward`.
        """
        linear_layers = [module for module in self.network.modules() if isinstance(module, nn.Linear)]
        if not linear_layers or linear_layers[-1].out_features != self.hparams["num_classes"]:
            return None
        layer_inputs: list[Tensor] = []
        hook = linear_layers[-1].register_forward_pre_hook(lambda _, arguments: layer_inputs.append(arguments[0]))
        try:  # `forward` instead of a call, because a compiled network does not call hooks
            self.network.forward(self.normalized(inputs))
        finally:
            hook.remove()
        return layer_inputs[-1].flatten(1) if layer_inputs else None

    def weight_tensors(self) -> dict[str, Tensor]:
        """Return the trained weights of the network by name, without biases and normalization parameters."""
        parameters = self.network.named_parameters()
        # the heads of an ensemble and the embeddings of numbers have biases with two dimensions
        return {
            name: weight
            for name, weight in parameters
            if weight.ndim > 1 and weight.requires_grad and not name.endswith("bias")
        }

    def prunable_layers(self) -> list[PrunableLayer]:
        """Return the layers whose units `callbacks.pruning` can remove; none unless a subclass overrides this method."""
        return []

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        inputs, labels, *kept = batch
        if self.num_members == 1:
            members = logits = self._logits(inputs, labels)
        else:
            members = _at_least_float32(self.network(self.normalized(inputs)))  # (B, M, K)
            logits, members = mean_of_members(members), members.flatten(0, 1)  # (B, K), (B M, K)
        loss = self.loss(members, labels.repeat_interleave(self.num_members))
        if self.teacher is not None:
            taught = kept[0] if kept else self.teacher(inputs)  # (B, K)
            taught = taught.repeat_interleave(self.num_members, 0)
            divergence = distillation_loss(members, taught, self.hparams["teacher_temperature"])
            loss = torch.lerp(loss, divergence, self.hparams["teacher_weight"])
        if self.hparams["l1_penalty"] > 0:
            loss = loss + self.hparams["l1_penalty"] * self._absolute_weights()
        self.train_means.update(loss.detach(), logits.detach(), labels)
        self._log_step(loss, batch_idx)
        return loss

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the training loss of logits (B, K) and labels (B,), without the penalty of weights."""
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        return F.cross_entropy(logits, labels, weights, label_smoothing=self.hparams["label_smoothing"])

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._evaluate(batch, self.val_loss, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self._evaluate(batch, self.test_loss, self.test_metrics)
        self.test_uncalibrated.update(logits * self.temperature, batch[1])
        return logits

    def on_train_epoch_end(self) -> None:
        loss, accuracy = self.train_means.compute()
        self.log_dict({"train/loss": loss, "train/accuracy": accuracy})
        self.train_means.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val", self.val_loss, self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test", self.test_loss, self.test_metrics)
        if self.temperature != 1:
            self.log("test/uncalibrated_error", self.test_uncalibrated.compute())
        self.test_uncalibrated.reset()

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[dict[str, Any]]]:  # type: ignore[override]
        make_optimizer, options = _find_function(optimizers, self.hparams["optimizer"], "adam")
        if "fused" in signature(make_optimizer).parameters and not self._can_fuse():
            options["fused"] = options.get("fused") or False
        optimizer = make_optimizer(self.network, **options)
        make_schedule, options = _find_function(schedules, self.hparams["schedule"], "constant")
        schedulers = make_schedule(optimizer, self.trainer.estimated_stepping_batches, **options)
        for scheduler in schedulers:
            if "monitor" in scheduler:  # the metric has a new value only after a validation
                scheduler["frequency"] = self.trainer.check_val_every_n_epoch or 1
        return [optimizer], schedulers

    def _logits(self, inputs: Any, labels: Tensor) -> Tensor:
        """Return the logits (B, K) of a batch, in float32 or a wider type."""
        logits = self(inputs)
        expected = (len(labels), self.hparams["num_classes"])
        if logits.shape != expected or labels.ndim != 1:
            shapes = f"logits {tuple(logits.shape)} for labels {tuple(labels.shape)}"
            raise ValueError(f"{type(self).__name__} returned {shapes}; expected {expected} and {expected[:1]}")
        return _at_least_float32(logits)

    def _can_fuse(self) -> bool:
        """Whether a fused optimizer works.

        It fails with FSDP, and Lightning cannot clip gradients for it in mixed precision.
        """
        clips_in_mixed_precision = self.trainer.gradient_clip_val and "mixed" in str(self.trainer.precision)
        return not clips_in_mixed_precision and type(self.trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)

    def _evaluate(self, batch: Batch, loss: WeightedMean, metrics: MetricCollection) -> Tensor:
        """Update the metrics of a stage. Returns logits (B, K) for callbacks."""
        inputs, labels = batch
        logits = self._logits(inputs, labels)
        loss.update(F.cross_entropy(logits, labels), len(labels))
        metrics.update(logits, labels)
        return logits

    def _log_evaluation(self, stage: Literal["val", "test"], loss: WeightedMean, metrics: MetricCollection) -> None:
        values = metrics.compute()
        class_accuracies = values.pop("class_accuracy")
        self.log_dict({f"{stage}/loss": loss.compute(), **{f"{stage}/{name}": value for name, value in values.items()}})
        if stage == "test":
            named = zip(self.class_names, class_accuracies, strict=True)
            # not to the logger, because `callbacks.confusion_matrix` draws all of them as one picture
            values = {f"test_class_accuracy/{name}": value for name, value in named}
            self.log_dict(values, logger=False, add_dataloader_idx=False)  # a name may contain "/dataloader_idx_"
        loss.reset()
        metrics.reset()

    def _log_step(self, loss: Tensor, batch_idx: int) -> None:
        """Log the loss and the learning rate of a step. `self.log` would take as long as the step of a small model."""
        if not self.trainer.loggers or batch_idx % self.trainer.accumulate_grad_batches:
            return
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            log_everywhere(self.trainer, {"train/loss_step": loss.item(), "train/lr": rate})

    def _absolute_weights(self) -> Tensor:
        return torch.stack([weight.abs().sum() for weight in self.weight_tensors().values()]).sum()


def mean_of_members(logits: Tensor) -> Tensor:
    """Return logits (B, K) of the mean of the probabilities of all members, from their logits (B, M, K)."""
    return _at_least_float32(logits).log_softmax(2).logsumexp(1) - math.log(logits.shape[1])


def _at_least_float32(logits: Tensor) -> Tensor:
    """Half precision is not exact enough for the softmax in the loss."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _find_function(module: Any, section: Mapping[str, Any] | None, default: str) -> tuple[Any, dict[str, Any]]:
    """Return the function of `module` that a config section names, and its options."""
    options = dict(section or {"name": default})
    return getattr(module, options.pop("name")), options
