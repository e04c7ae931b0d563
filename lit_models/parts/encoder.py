"""The BERT encoder of Hugging Face transformers: randomly initialized, from a checkpoint's config, or pretrained."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from engine.contracts import OptionError
from engine.hub import load_pretrained

if TYPE_CHECKING:
    from transformers import BertConfig, BertModel

# A run builds its model from these values of a pretrained config. A checkpoint stores them, so that the same model can be
# built without the pretrained files. Other values, such as chunk_size_feed_forward, do not change the result.
CONFIG_KEYS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "initializer_range", "pad_token_id", "is_decoder",
)  # fmt: skip
HEAD_SIZE = "attention_head_size"  # key for the size of a head; without it, the heads share the hidden size
# Options that change the result, each with the only value that BertModel and a checkpoint support.
FIXED: dict[str, Any] = {"position_embedding_type": "absolute", "pruned_heads": {}, "quantization_config": None}


def make_config(
    hidden_size: int, num_layers: int, num_heads: int, head_size: int, intermediate_size: int, vocab_size: int, pad_id: int,
    length: int,
) -> dict[str, Any]:  # fmt: skip
    """Config of a new encoder, with the names of a ``config.json``. `HEAD_SIZE` is a name of this project."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        HEAD_SIZE: head_size,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": length,
        # BERT has 0.02 at a hidden size of 768. Smaller sizes learn badly with that value
        "initializer_range": 0.02 * (768 / hidden_size) ** 0.5,
        "pad_token_id": pad_id,
    }


def build(config: Mapping[str, Any], dropout: float, has_pooler: bool) -> "BertModel":
    """Build an encoder with random weights. Its heads together may be narrower than the hidden size, after pruning."""
    values = dict(config)
    size, num_heads, head_size = values["hidden_size"], values["num_attention_heads"], values.pop(HEAD_SIZE, None)
    width = num_heads * (head_size or size // num_heads)
    values["num_attention_heads"] = num_heads if width == size else 1  # transformers needs a divisor of the hidden size
    encoder: BertModel = _import_transformers().BertModel(_bert_config(values, dropout), add_pooling_layer=has_pooler)
    if width != size:
        layers: Any = encoder.encoder.layer
        for layer in layers:
            attention, output = layer.attention.self, layer.attention.output
            attention.num_attention_heads, attention.attention_head_size = num_heads, head_size
            attention.all_head_size, attention.scaling = width, head_size**-0.5
            for module, name, sizes in (
                (attention, "query", (size, width)), (attention, "key", (size, width)), (attention, "value", (size, width)),
                (output, "dense", (width, size)),
            ):  # fmt: skip
                linear = nn.Linear(*sizes)
                nn.init.normal_(linear.weight, std=encoder.config.initializer_range)
                nn.init.zeros_(linear.bias)
                setattr(module, name, linear)
    return encoder


def _bert_config(config: Mapping[str, Any], dropout: float) -> "BertConfig":
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    transformers = _import_transformers()
    bert_config: BertConfig = transformers.BertConfig(
        **config, **rates, use_cache=False, dtype=torch.float32, attn_implementation="sdpa"
    )
    return bert_config


def load(name: str, revision: str | None, dropout: float, has_pooler: bool) -> "BertModel":
    """Load a pretrained encoder in training mode. Only safetensors files are read, because other formats can contain code.

    Args:
        name: A folder, or a model on the hub if there is no such folder.
        revision: Commit, tag or branch on the hub; None for the newest.
        dropout: Dropout probability, which replaces the one in the pretrained config.
        has_pooler: Add BERT's pooler, a layer on the vector of the first token.

    Raises:
        OptionError: if the files are missing, damaged, or not a BERT. The message says which files to download.
    """
    transformers = _import_transformers()
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # never ask the hub to convert pickled weights
    if Path(name).expanduser().is_dir():
        transformers.utils.logging.disable_progress_bar()  # only a download needs one

    def read_config(source: str) -> dict[str, Any]:
        config: dict[str, Any] = transformers.PreTrainedConfig.get_config_dict(source, revision=revision)[0]
        return config

    def read_weights(source: str) -> tuple["BertModel", dict[str, Any]]:
        known = transformers.BertConfig(**values)
        return transformers.BertModel.from_pretrained(
            source,
            config=_bert_config({name: getattr(known, name) for name in CONFIG_KEYS}, dropout),
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            add_pooling_layer=has_pooler,
            output_loading_info=True,
        )

    key = "model.pretrained"
    values = load_pretrained(key, name, revision, read_config, OptionError)
    if (model_type := values.get("model_type")) != "bert":
        raise OptionError(f"{key}: {name} is a model of the type {model_type}; only bert is supported")
    for option, only in FIXED.items():
        if (value := values.get(option)) not in (None, only):
            raise OptionError(f"{key}: {name} has {option}: {value} in config.json; only {only} is supported")
    encoder, report = load_pretrained(key, name, revision, read_weights, OptionError)
    if missing := sorted(weight for weight in report["missing_keys"] if not weight.startswith("pooler.")):
        raise OptionError(f"{key}: {name} has no weights for {missing[0]}, so it does not match its config.json")
    return encoder.train()  # transformers returns it in evaluation mode, and Lightning keeps the mode


def check_fits(name: str | None, config: "BertConfig", vocab_size: int, length: int, hint: str) -> None:
    """Check that a pretrained encoder has enough token ids and positions for the data.

    Raises:
        OptionError: if it does not. `hint` says how to shorten the sequences.
    """
    if vocab_size > config.vocab_size:
        raise OptionError(
            f"model.pretrained: {name} has {config.vocab_size} tokens, but the tokenizer has {vocab_size};"
            f" set data.tokenizer={name}"
        )
    if length > (most := config.max_position_embeddings):
        raise OptionError(f"model.pretrained: {name} takes at most {most} tokens, but the data has {length}; {hint}")


def identify(name: str, revision: str | None) -> str:
    """Return an identifier of pretrained weights: the SHA-256 of ``model.safetensors``, or the commit on the hub."""
    path = Path(name).expanduser() / "model.safetensors"
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else ""  # .../snapshots/COMMIT/config.json


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise OptionError(
            "model.name: bert needs the package transformers; run: pip install -e '.[bert]' -c constraints.txt"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    return transformers
