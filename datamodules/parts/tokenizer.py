"""Texts to token ids: the tokenizer of a pretrained model, or a WordPiece vocabulary from the training texts alone.

WordPiece: Schuster and Nakajima 2012; as in BERT, Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from datamodules.parts.download import reason
from engine.contracts import DataError
from engine.hub import MODEL_FILES, is_hub_reachable

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
MISSING = "data.name: text needs the package transformers; run: pip install -e '.[bert]' -c constraints.txt"
_CHUNK = 10_000  # texts that are encoded at once: the encodings of all would take many times their memory


def pretrained_tokenizer(name: str, revision: str | None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a local folder or of a model on the hub.

    Raises:
        DataError: if it cannot be had; it says what to download and where to put it.
    """
    try:
        from transformers import AutoTokenizer
        from transformers.utils import logging
    except ImportError:
        raise DataError(MISSING) from None
    logging.set_verbosity_error()
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if not local and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        raise DataError(f"data.tokenizer: {name} is neither a folder nor the name of a model on the hub")
    answers = local or is_hub_reachable()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder if local else name, revision=revision, trust_remote_code=False)
    except Exception as error:  # the library raises whatever its network, file and parser layers do
        if local:
            raise DataError(
                f"data.tokenizer: {name} has no tokenizer that can be read; put {MODEL_FILES} there"
            ) from None
        why = reason(error) if answers else "the hub does not answer"
        raise DataError(
            f"data.tokenizer: {name} is no folder here, and cannot be downloaded ({why}); put {MODEL_FILES} of"
            f" https://huggingface.co/{name}/tree/{revision or 'main'} into a folder, and set model.pretrained=FOLDER (and"
            f" data.tokenizer, where it is not ${{model.pretrained}})"
        ) from None
    # without any file of a vocabulary the library makes one of the special tokens alone
    if not tokenizer.is_fast or tokenizer.pad_token_id is None or len(tokenizer) <= len(tokenizer.all_special_ids):
        raise DataError(
            f"data.tokenizer: {name} has no tokenizer.json with words and a padding token; put {MODEL_FILES} there"
        )
    return tokenizer


def trained_tokenizer(texts: Sequence[str], vocab_size: int, lowercase: bool) -> "PreTrainedTokenizerBase":
    """A WordPiece tokenizer of about `vocab_size` tokens; the same texts always give the same one.

    Args:
        texts: What it is to be made for.
        vocab_size: How many tokens; more, if the texts have more characters, each of which has one.
        lowercase: Read capitals as small letters; accents are kept.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, processors
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise DataError(MISSING) from None
    special = list(SPECIAL.values())
    # `tokenizers` numbers the continuing characters (##a) in the order of a hash table, and lets these numbers break the
    # ties between equally frequent pairs (https://github.com/huggingface/tokenizers/issues/1794): given in order, they
    # make the vocabulary a function of the texts.
    characters = _vocabulary(texts, 0, lowercase, special)
    continuing = sorted(one for one in characters if len(one) == 3 and one.startswith("##"))
    vocabulary = _vocabulary(texts, vocab_size, lowercase, [*special, *continuing])
    tokenizer = _blank(lowercase)
    tokenizer.model = models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"])
    tokenizer.decoder = decoders.WordPiece()
    begin, end = SPECIAL["cls_token"], SPECIAL["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} $B:1 {end}:1",
        special_tokens=[(one, vocabulary[one]) for one in (begin, end)],
    )
    assert isinstance(tokenizer, Tokenizer)
    names = ["input_ids", "token_type_ids", "attention_mask"]  # what BERT reads: without types pairs are read otherwise
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=names, **SPECIAL)


def encode(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], seconds: Sequence[str], max_length: int
) -> dict[str, np.ndarray]:
    """Token ids of all texts: ``ids`` one after another, ``lengths`` (N,), and ``second_starts`` (N,) for pairs.

    Args:
        tokenizer: A fast one.
        texts: N of them.
        seconds: As many, or none.
        max_length: Longer rows are cut, of a pair the longer text.
    """
    backend = type(tokenizer.backend_tokenizer).from_str(
        tokenizer.backend_tokenizer.to_str()
    )  # the given one stays as it is
    backend.no_padding()
    backend.enable_truncation(max_length)
    inputs = list(zip(texts, seconds, strict=True)) if seconds else list(texts)
    ids, lengths, second_starts = [], [], []
    with tqdm(total=len(inputs), desc="tokenizing", unit=" texts", disable=None, leave=False) as progress:
        for start in range(0, len(inputs), _CHUNK):
            encodings = backend.encode_batch_fast(inputs[start : start + _CHUNK])
            ids.append(np.array([token for one in encodings for token in one.ids], np.int32))
            lengths += [len(one.ids) for one in encodings]
            if seconds:
                second_starts += [len(one.ids) - sum(one.type_ids) for one in encodings]
            progress.update(len(encodings))
    found = {"ids": np.concatenate(ids), "lengths": np.array(lengths)}
    return found | ({"second_starts": np.array(second_starts)} if seconds else {})


def _vocabulary(texts: Sequence[str], size: int, lowercase: bool, special: list[str]) -> dict[str, int]:
    from tokenizers import trainers

    tokenizer = _blank(lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=special, show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()


def _blank(lowercase: bool) -> "Tokenizer":
    """Splits like BERT's, Chinese characters one by one; it has no vocabulary yet."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
