"""BERT for text, images and features.

The encoder is BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805) of Hugging Face transformers. Its input is a
sequence of vectors: one per token of a text, one per patch of an image as in ViT (Dosovitskiy et al. 2020,
https://arxiv.org/abs/2010.11929), or one per feature or column of a table as in FT-Transformer (Gorishniy et al. 2021,
https://arxiv.org/abs/2106.11959).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.contracts import OptionError, PrunableLayer, TrainingBatch
from lit_models.classifier import LitClassifier
from lit_models.parts import encoder
from lit_models.parts.feature_embeddings import FeatureEmbeddings
from lit_models.parts.metrics import WeightedMean
from lit_models.parts.sequences import FeatureTokens, Patches, num_tokens

if TYPE_CHECKING:
    from transformers import BertModel

# B batch, T tokens, E hidden size, K classes


class BERT(nn.Module):
    """A BERT encoder, pooling over the sequence, dropout and a linear layer.

    Args:
        encoder: Encoder of transformers.
        tokens: Layer that turns images or features into a sequence of vectors (B, T, E); None for token ids.
        num_classes: Number of classes K.
        pooling: "cls" takes the output of BERT's pooler for the first token, "mean" the mean of all tokens except padding.
        dropout: Probability of zeroing a unit before the linear layer.
        layer_decay: Ratio of the learning rates of a layer and of the layer above it.
    """

    def __init__(
        self,
        encoder: "BertModel",
        tokens: nn.Module | None,
        num_classes: int,
        pooling: Literal["cls", "mean"],
        dropout: float,
        layer_decay: float,
    ) -> None:
        super().__init__()
        hidden_size, std = encoder.config.hidden_size, encoder.config.initializer_range
        self.encoder, self.tokens, self.pooling, self.layer_decay = encoder, tokens, pooling, layer_decay
        if tokens is not None:
            # the table of word vectors would get no gradient, which DDP does not allow
            encoder.embeddings.word_embeddings = None  # type: ignore[assignment]
            self.cls = nn.Parameter(torch.randn(hidden_size) * std)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, num_classes)
        nn.init.normal_(self.head.weight, std=std)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Return logits (B, K).

        Args:
            inputs: Images or features for the layer `tokens`; or a mapping with ``input_ids`` (B, T) or ``inputs_embeds``
                (B, T, E), and optionally ``attention_mask`` and ``token_type_ids`` (B, T).
        """
        if isinstance(inputs, Tensor):
            assert self.tokens is not None
            inputs = self.tokens(inputs)  # (B, T, E)
        return self.classify(inputs)

    def classify(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """As `forward`, with the vectors (B, T, E) of images or features."""
        mask = None
        if isinstance(inputs, Tensor):
            cls = self.cls.to(inputs.dtype).expand(inputs.shape[0], 1, -1)  # `len` would fix the size in an export
            arguments = {"inputs_embeds": torch.cat([cls, inputs], dim=1)}  # (B, 1 + T, E)
        else:
            names = ("input_ids", "inputs_embeds", "token_type_ids")
            arguments = {name: inputs[name] for name in names if name in inputs}
            if (mask := inputs.get("attention_mask")) is not None:
                # with a mask (B, T), transformers waits for the device to see whether it is all ones; only a decoder needs
                # this shape
                is_decoder = self.encoder.config.is_decoder
                arguments["attention_mask"] = mask if is_decoder else mask.bool()[:, None, None, :]  # (B, 1, 1, T)
        with self.attention_kernel():
            outputs = self.encoder(**arguments)
        if self.pooling == "cls":
            pooled = outputs.pooler_output  # (B, E)
        elif mask is None:
            pooled = outputs.last_hidden_state.mean(1)
        else:
            weights = mask.to(outputs.last_hidden_state.dtype)[:, :, None]  # (B, T, 1)
            pooled = (outputs.last_hidden_state * weights).sum(1) / weights.sum(1)
        return self.head(self.dropout(pooled))

    def attention_kernel(self) -> AbstractContextManager[None]:
        """Choose the attention kernel. On a CPU, the fused kernel is 3 to 7 times slower in bf16 than the plain one."""
        return sdpa_kernel(SDPBackend.MATH) if self.head.weight.device.type == "cpu" else nullcontext()

    def checkpoint_activations(self) -> None:
        """Store only the input of each layer, and compute the rest again in the backward pass, with the same kernel."""
        options = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), self.attention_kernel())}
        # new versions of transformers have the first name
        enable = getattr(self.encoder, "activation_checkpointing_enable", None)
        (enable or self.encoder.gradient_checkpointing_enable)(options)

    def lr_scales(self) -> dict[str, float]:
        """Return the factors of the learning rate by parameter name: 1 for the head, and less for every lower layer."""
        num_layers = len(self.encoder.encoder.layer)
        scales = {}
        for name, _ in self.named_parameters():
            if name.startswith("encoder.encoder.layer."):
                scales[name] = self.layer_decay ** (num_layers - int(name.split(".")[3]))
            elif name.startswith(("encoder.embeddings.", "tokens.", "cls")):
                scales[name] = self.layer_decay ** (num_layers + 1)
        return scales


class LitBERT(LitClassifier):
    """BERT for text, images or features, pretrained or from scratch.

    A checkpoint contains the whole model. Loading it does not need the pretrained model.

    Args:
        vocab_size: For tokens: ids go from 0 to vocab_size - 1.
        pad_id: For tokens: the id that fills up short rows.
        max_length: For tokens: the largest number of tokens in a row.
        pretrained: A BERT on the hub, or a folder with config.json and model.safetensors; null to train from scratch.
        revision: Commit, tag or branch of the pretrained model on the hub; null for the newest.
        hidden_size: Size of the vector of a token; null for 128. The pretrained model sets this and the next three.
        num_layers: Number of transformer layers; null for 4.
        num_heads: Attention heads of a layer; null for 4.
        head_size: Size of an attention head; null for the hidden size divided by the number of heads.
        intermediate_size: Hidden units in the MLP of a layer; null for four times the hidden size.
        patch_size: Side of the square patches of an image, in pixels. It must divide height and width.
        pooling: Vector that the last layer classifies: the first token after BERT's pooler (cls) or the mean of all (mean).
        dropout: Probability of zeroing a unit in embeddings, attention and layers, and before the last layer.
        freeze_embeddings: Do not train the embeddings.
        freeze_layers: Number of layers, from the input on, that are not trained.
        layer_decay: Ratio of the learning rates of a layer and of the layer above it; 1 for equal rates.
        gradient_checkpointing: Compute activations again in the backward pass, which saves memory.
        architecture: Config of the pretrained model, from a checkpoint.
        options: Arguments of `LitClassifier`.
    """

    accepts = ("tokens", "image", "features")
    training_options = (
        *LitClassifier.training_options, "dropout", "pretrained", "revision", "freeze_embeddings", "freeze_layers",
        "layer_decay", "gradient_checkpointing",
    )  # fmt: skip
    requires: ClassVar[dict[str, str]] = {"transformers": "bert"}

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        vocab_size: int | None = None,
        pad_id: int = 0,
        max_length: int | None = None,
        pretrained: str | None = None,
        revision: str | None = None,
        hidden_size: Annotated[int, ">= 1"] | None = None,
        num_layers: Annotated[int, ">= 1"] | None = None,
        num_heads: Annotated[int, ">= 1"] | None = None,
        head_size: Annotated[int, ">= 1"] | None = None,
        intermediate_size: Annotated[int, ">= 1"] | None = None,
        patch_size: Annotated[int, ">= 1"] = 4,
        pooling: Literal["cls", "mean"] = "cls",
        dropout: Annotated[float, ">= 0, < 1"] = 0.1,
        freeze_embeddings: bool = False,
        freeze_layers: Annotated[int, ">= 0"] = 0,
        layer_decay: Annotated[float, "> 0, <= 1"] = 1.0,
        gradient_checkpointing: bool = False,
        architecture: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(input_shape, num_classes, **options)
        self.train_padding = WeightedMean() if not input_shape else None
        for name in ("hidden_size", "num_layers", "num_heads", "head_size", "intermediate_size"):
            if pretrained is not None and self.hparams[name] is not None:
                raise OptionError(f"model.{name}: {pretrained} sets it; leave it out, or set model.pretrained=null")
        if input_shape:
            length, vocab_size = num_tokens(input_shape, patch_size), 1
        elif vocab_size is None or max_length is None:
            raise OptionError("model: tokens (input_shape=()) need vocab_size and max_length")
        else:
            length = max_length
        has_pooler = pooling == "cls"
        if architecture is None and pretrained is not None:
            bert = encoder.load(pretrained, revision, dropout, has_pooler)
            found = {key: getattr(bert.config, key) for key in encoder.CONFIG_KEYS}
            head_size = found["hidden_size"] // found["num_attention_heads"]
            self.hparams["architecture"] = {**found, encoder.HEAD_SIZE: head_size}
            self.pretrained_identity = encoder.identify(pretrained, revision)
        else:
            size, heads = hidden_size or 128, num_heads or 4
            if head_size is None and size % heads and architecture is None:
                raise OptionError(f"model.num_heads: {heads} does not divide model.hidden_size {size}")
            sizes = heads, head_size or size // heads, intermediate_size or 4 * size
            if architecture is None:  # pruning changes these numbers
                self.hparams.update(zip(("num_heads", "head_size", "intermediate_size"), sizes, strict=True))
            config = architecture or encoder.make_config(size, num_layers or 4, *sizes, vocab_size, pad_id, length)
            bert = encoder.build(config, dropout, has_pooler)
        tokens: nn.Module | None = None
        hint = "set a smaller data.max_length"
        if len(input_shape) == 3:
            tokens = Patches(input_shape[0], patch_size, bert.config.hidden_size)
            hint = "set a larger model.patch_size"
        elif self.hparams["columns"] is not None:
            counts = [len(categories) for categories in self.hparams["columns"].values()]
            tokens = FeatureEmbeddings(counts, bert.config.hidden_size, "none", bert.config.initializer_range)
            hint = "use fewer columns"
        elif input_shape:
            tokens = FeatureTokens(input_shape[0], bert.config.hidden_size, bert.config.initializer_range)
            hint = "use fewer features"
        encoder.check_fits(pretrained, bert.config, vocab_size, length, hint)
        self.network = BERT(bert, tokens, num_classes, pooling, dropout, layer_decay)
        if freeze_layers > len(bert.encoder.layer):
            raise OptionError(
                f"model.freeze_layers: {freeze_layers} is more than the {len(bert.encoder.layer)} layers of the encoder"
            )
        frozen = [bert.embeddings] if freeze_embeddings else []
        for module in (*frozen, *bert.encoder.layer[:freeze_layers]):
            module.requires_grad_(False)
        if gradient_checkpointing:
            self.network.checkpoint_activations()

    def initialize_from_data(self, inputs: Any, mean: Tensor, std: Tensor) -> None:
        """Set the normalization, and compute the statistics of the columns of a table."""
        super().initialize_from_data(inputs, mean, std)
        if isinstance(tokens := self.network.tokens, FeatureEmbeddings):
            tokens.fit(inputs)

    def prunable_layers(self) -> list[PrunableLayer]:
        """Return the attention heads and the hidden units of the MLP of each layer."""
        assert isinstance(self.network, BERT)
        is_pretrained, found = self.hparams["architecture"] is not None, []
        heads = ("architecture", "num_attention_heads") if is_pretrained else ("num_heads",)
        units = ("architecture", "intermediate_size") if is_pretrained else ("intermediate_size",)
        layers: Any = self.network.encoder.encoder.layer
        for i, layer in enumerate(layers):
            path = f"encoder.encoder.layer.{i}"
            projections = [f"{path}.attention.self.{name}" for name in ("query", "key", "value")]
            num_heads, num_units = layer.attention.self.num_attention_heads, layer.intermediate.dense.out_features
            found.append(PrunableLayer(heads, num_heads, projections, [f"{path}.attention.output.dense"]))
            found.append(PrunableLayer(units, num_units, [f"{path}.intermediate.dense"], [f"{path}.output.dense"]))
        return found

    def attribution_inputs(self, inputs: Any) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """As in `LitClassifier`.

        The sample of a text has word vectors (1, T, E), and its baseline those of padding. The sample of a table has the
        vectors of its columns (1, D, E), and its baseline those of missing values.
        """
        assert isinstance(self.network, BERT)
        if isinstance(tokens := self.network.tokens, FeatureEmbeddings):
            return tokens(inputs), tokens(torch.full_like(inputs, math.nan)), self.network.classify
        if not isinstance(inputs, Mapping):
            return super().attribution_inputs(inputs)
        embed = self.network.encoder.get_input_embeddings()
        others = {name: inputs[name] for name in ("attention_mask", "token_type_ids") if name in inputs}

        def logits(vectors: Tensor) -> Tensor:
            expanded = {name: value.expand(len(vectors), -1) for name, value in others.items()}
            return self.network.forward({"inputs_embeds": vectors, **expanded})

        ids = inputs["input_ids"]
        return embed(ids), embed(torch.full_like(ids, self.hparams["pad_id"])), logits

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.train_padding is not None:
            ids, mask = batch[0]["input_ids"], batch[0].get("attention_mask")
            padding = loss.new_zeros(()) if mask is None else 1 - mask.float().mean()
            self.train_padding.update(padding, ids.numel())
        return loss

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        if self.train_padding is not None:
            self.log("train/padding_share", self.train_padding.compute())
            self.train_padding.reset()
