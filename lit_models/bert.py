"""BERT's encoder on text, images and rows of features.

Devlin et al. 2018, https://arxiv.org/abs/1810.04805, as in Hugging Face transformers. Images are cut into patches as in ViT
(Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929), a row of features is one token per feature as in FT-Transformer
(Gorishniy et al. 2021, https://arxiv.org/abs/2106.11959); from there on all three are the same sequence of vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.contracts import Batch, OptionError
from lit_models.classifier import LitClassifier
from lit_models.parts import encoder
from lit_models.parts.metrics import MeanLoss
from lit_models.parts.sequences import FeatureTokens, Patches, num_tokens

if TYPE_CHECKING:
    from transformers import BertModel

# B batch, T tokens, E hidden size, C channels, H height, W width, P patch size, D features, K classes


class BERT(nn.Module):
    """An encoder, one vector for the whole sequence, a linear layer.

    Args:
        encoder: Of transformers.
        tokens: Makes a sequence of vectors of anything but token ids; null for those.
        num_classes: K.
        pooling: "cls" takes the vector of the first token through BERT's pooler, "mean" averages all that are no padding.
        dropout: Probability of dropping a unit before the linear layer.
        layer_decay: Each layer trains at so many times the rate of the next one above it.
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
            # no words, no table of them: a parameter without gradients would stop DDP
            encoder.embeddings.word_embeddings = None  # type: ignore[assignment]
            self.cls = nn.Parameter(torch.randn(hidden_size) * std)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_size, num_classes)
        nn.init.normal_(self.head.weight, std=std)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Logits (B, K) of images, features, or token ids with or without mask and types (B, T)."""
        mask = None
        if isinstance(inputs, Tensor):
            assert self.tokens is not None
            sequence = self.tokens(inputs)
            cls = self.cls.to(sequence.dtype).expand(len(sequence), 1, -1)
            given = {"inputs_embeds": torch.cat([cls, sequence], dim=1)}  # (B, 1 + T, E)
        else:
            given = {name: inputs[name] for name in ("input_ids", "inputs_embeds", "token_type_ids") if name in inputs}
            if (mask := inputs.get("attention_mask")) is not None:
                # four axes are taken as they are; of two the library would ask the device whether all are set
                given["attention_mask"] = mask.bool()[:, None, None, :]
        with self.attention():
            outputs = self.encoder(**given)
        if self.pooling == "cls":
            pooled = outputs.pooler_output
        elif mask is None:
            pooled = outputs.last_hidden_state.mean(1)
        else:
            weights = mask.to(outputs.last_hidden_state.dtype)[:, :, None]
            pooled = (outputs.last_hidden_state * weights).sum(1) / weights.sum(1)
        return self.head(self.dropout(pooled))

    def attention(self) -> AbstractContextManager[None]:
        """Chooses the kernel: on CPUs the plain one, because the fused one is 3 to 7 times slower there in bf16."""
        return sdpa_kernel(SDPBackend.MATH) if self.head.weight.device.type == "cpu" else nullcontext()

    def checkpoint_activations(self) -> None:
        """Keep each layer's input alone, and compute the rest again, with the same kernels, in the backward pass."""
        options = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), self.attention())}
        enable = getattr(self.encoder, "activation_checkpointing_enable", None)  # the newer name
        (enable or self.encoder.gradient_checkpointing_enable)(options)

    def lr_scales(self) -> dict[str, float]:
        """Parameter name -> factor of the learning rate: 1 at the top, less with every layer below it."""
        num_layers = len(self.encoder.encoder.layer)
        scales = {}
        for name, _ in self.named_parameters():
            if name.startswith("encoder.encoder.layer."):
                scales[name] = self.layer_decay ** (num_layers - int(name.split(".")[3]))
            elif name.startswith(("encoder.embeddings.", "tokens.", "cls")):
                scales[name] = self.layer_decay ** (num_layers + 1)
        return scales


class LitBERT(LitClassifier):
    """BERT on text, images (as patches) or features (a token each), pretrained or from scratch.

    A checkpoint holds the whole model: it loads without the pretrained one.

    Args:
        vocab_size: Of tokens: ids go from 0 to this less one.
        pad_id: Of tokens: the id that fills up a row.
        max_length: Of tokens: the most in a row.
        pretrained: Hub name of a BERT, or a folder with its config.json and model.safetensors; null to start from scratch.
        revision: Its commit, tag or branch on the hub; null for the newest.
        hidden_size: Width of a token's vector; null for 128, or what the pretrained model has, as for the next three.
        num_layers: Transformer layers; null for 4.
        num_heads: Attention heads of a layer; null for 4.
        intermediate_size: Width of a layer's hidden units; null for four times the hidden size.
        patch_size: Side of an image's patches, in pixels; it must divide the image's.
        pooling: What stands for the whole sequence: the first token's vector (cls) or the mean of all.
        dropout: Probability of dropping a unit, in the embeddings, attention, layers and before the classifier.
        freeze_embeddings: Keep the embeddings as they are.
        freeze_layers: Keep the first so many layers as they are.
        layer_decay: Each layer trains at so many times the rate of the next one above it; 1 for all alike.
        gradient_checkpointing: Compute activations again in the backward pass, to save memory.
        architecture: Of the pretrained model, from a checkpoint.
        options: Those of `LitClassifier`.
    """

    accepts = ("tokens", "image", "features")
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
        self.train_padding = MeanLoss() if not input_shape else None
        for name in ("hidden_size", "num_layers", "num_heads", "intermediate_size"):
            if pretrained is not None and self.hparams[name] is not None:
                raise OptionError(f"model.{name}: {pretrained} has its own; leave it out, or set model.pretrained=null")
        if input_shape:
            length, vocab_size = num_tokens(input_shape, patch_size), 1
        elif vocab_size is None or max_length is None:
            raise OptionError("model: tokens (input_shape=()) need a vocab_size and a max_length")
        else:
            length = max_length
        pooler = pooling == "cls"
        if architecture is None and pretrained is not None:
            bert = encoder.load(pretrained, revision, dropout, pooler)
            self.hparams["architecture"] = {name: getattr(bert.config, name) for name in encoder.DESCRIPTION}
            self.pretrained_identity = encoder.identity(pretrained, revision)
        else:
            width = hidden_size or 128
            layers = (num_layers or 4, num_heads or 4, intermediate_size or 4 * width)
            scratch = encoder.describe(width, *layers, vocab_size, pad_id, length)
            bert = encoder.build(architecture or scratch, dropout, pooler)
        encoder.check_fits(pretrained, bert.config, vocab_size, length, images=bool(input_shape))
        tokens: nn.Module | None = None
        if len(input_shape) == 3:
            tokens = Patches(input_shape[0], patch_size, bert.config.hidden_size)
        elif input_shape:
            tokens = FeatureTokens(input_shape[0], bert.config.hidden_size, bert.config.initializer_range)
        self.network = BERT(bert, tokens, num_classes, pooling, dropout, layer_decay)
        if freeze_layers > len(bert.encoder.layer):
            raise OptionError(
                f"model.freeze_layers: {freeze_layers} cannot be frozen, there are {len(bert.encoder.layer)}"
            )
        frozen = [bert.embeddings] if freeze_embeddings else []
        for module in (*frozen, *bert.encoder.layer[:freeze_layers]):
            module.requires_grad_(False)
        if gradient_checkpointing:
            self.network.checkpoint_activations()

    def attribution_inputs(self, inputs: Any) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """As `LitClassifier`; of tokens the sample is their vectors (1, T, E), compared with as many of the padding."""
        if not isinstance(inputs, Mapping):
            return super().attribution_inputs(inputs)
        assert isinstance(self.network, BERT)
        words = self.network.encoder.get_input_embeddings()
        rest = {name: one for name, one in inputs.items() if name != "input_ids"}

        def logits(vectors: Tensor) -> Tensor:
            several = {name: one.expand(len(vectors), -1) for name, one in rest.items()}
            return self.network.forward({"inputs_embeds": vectors, **several})

        ids = inputs["input_ids"]
        return words(ids), words(torch.full_like(ids, self.hparams["pad_id"])), logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
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
