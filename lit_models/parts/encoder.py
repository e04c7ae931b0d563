"""BERT's encoder of Hugging Face transformers: from scratch, from a checkpoint's description, or pretrained."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.contracts import OptionError
from engine.hub import MODEL_FILES, is_hub_reachable

if TYPE_CHECKING:
    from transformers import BertConfig, BertModel

# What has to be known of a pretrained model to build it without its files.
DESCRIPTION = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "initializer_range", "pad_token_id",
)  # fmt: skip
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def describe(
    hidden_size: int, num_layers: int, num_heads: int, intermediate_size: int, vocab_size: int, pad_id: int, length: int
) -> dict[str, Any]:
    """An encoder from scratch, in the words of a ``config.json``."""
    if hidden_size % num_heads:
        raise OptionError(f"model.num_heads: {num_heads} does not divide model.hidden_size {hidden_size}")
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": length,
        # BERT's 0.02 is for 768; narrower ones learn badly with it
        "initializer_range": 0.02 * (768 / hidden_size) ** 0.5,
        "pad_token_id": pad_id,
    }


def build(description: Mapping[str, Any], dropout: float, pooler: bool) -> "BertModel":
    """An encoder with random weights."""
    transformers = _transformers()
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = transformers.BertConfig(**description, **rates, attn_implementation="sdpa")
    return transformers.BertModel(config, add_pooling_layer=pooler)


def load(name: str, revision: str | None, dropout: float, pooler: bool) -> "BertModel":
    """A pretrained encoder from a folder or the hub, from safetensors alone, in training mode.

    Args:
        name: Of the folder or, if there is none, of a model on the hub.
        revision: Commit, tag or branch on the hub; null for the newest.
        dropout: In place of the pretrained model's own.
        pooler: With the layer behind the first token's vector.

    Raises:
        OptionError: if it cannot be had, or is no BERT; it says what to download and where to put it.
    """
    transformers = _transformers()
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if not local and not HUB_NAME.fullmatch(name):
        raise OptionError(f"model.pretrained: {name} is neither a folder nor the name of a model on the hub")
    source, answers = folder if local else name, local or is_hub_reachable()
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # else the hub may be asked to convert pickled weights
    if local:
        transformers.utils.logging.disable_progress_bar()  # a download's is wanted
    try:
        description, _ = transformers.PreTrainedConfig.get_config_dict(source, revision=revision)
        kind = description.get("model_type")
        if kind == "bert":
            encoder, report = transformers.BertModel.from_pretrained(
                source,
                revision=revision,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
                dtype=torch.float32,
                add_pooling_layer=pooler,
                output_loading_info=True,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
            )
    except Exception as error:  # the library raises whatever its network, file and parser layers do
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if local:
            raise OptionError(
                f"model.pretrained: {name} cannot be loaded ({reason}); put {MODEL_FILES} there"
            ) from None
        reason = reason if answers else "the hub does not answer"
        raise OptionError(
            f"model.pretrained: {name} is no folder here, and cannot be downloaded ({reason}); put {MODEL_FILES} of"
            f" https://huggingface.co/{name}/tree/{revision or 'main'} into a folder, and set model.pretrained=FOLDER"
        ) from None
    if kind != "bert":
        raise OptionError(f"model.pretrained: {name} is {kind or 'of no known kind'}; only BERT is built here")
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
        raise OptionError(f"model.pretrained: {name} lacks weights of BERT ({missing[0]}); is it another model?")
    return encoder.train()  # it comes in evaluation mode, and Lightning would leave it there


def check_fits(name: str | None, config: "BertConfig", vocab_size: int, length: int, images: bool) -> None:
    """OptionError where an encoder has too few tokens, or too few places for them."""
    if vocab_size > config.vocab_size:
        problem = f"{name} knows {config.vocab_size} tokens, the tokenizer has {vocab_size}; set data.tokenizer={name}"
        raise OptionError(f"model.pretrained: {problem}")
    if length > config.max_position_embeddings:
        hint = "a larger model.patch_size" if images else "a smaller data.max_length"
        most = config.max_position_embeddings
        raise OptionError(f"model.pretrained: {name} takes {most} tokens, and there can be {length}; set {hint}")


def identity(name: str, revision: str | None) -> str:
    """Which weights `load` gave: the commit on the hub, or the SHA-256 of a folder's ``model.safetensors``."""
    path = Path(name).expanduser() / "model.safetensors"
    if not path.is_file():
        from huggingface_hub import try_to_load_from_cache

        there = try_to_load_from_cache(name, "config.json", revision=revision)
        return Path(there).parent.name if isinstance(there, str) else ""  # .../snapshots/COMMIT/config.json
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise OptionError(
            "model.name: bert needs transformers; run: pip install -e '.[bert]' -c constraints.txt"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    return transformers
