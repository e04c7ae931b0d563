"""Convert texts to token ids with a pretrained tokenizer, or with a tokenizer that is trained on the training texts.

The trained tokenizer is WordPiece (Schuster and Nakajima 2012) with the rules of BERT (Devlin et al. 2018,
https://arxiv.org/abs/1810.04805, section 3).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from datamodules.parts.mapped import GrowingArray
from engine.contracts import DataError
from engine.hub import MODEL_FILES, load_pretrained

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
MAX_WORD = 100  # characters; WordPiece replaces a longer word by the unknown token
NO_WORDS = f"data.train: no text has a word of 1 to {MAX_WORD} visible characters; check data.text_column"
# A character that is not a space, ASCII punctuation or Chinese. BERT always splits texts at those characters.
RUN = r"[^ \t\n\r!-/:-@\[-`{-~\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
LONG_RUN = re.compile(rf"(?<!{RUN}){RUN}{{{MAX_WORD + 1},}}")


def pretrained_tokenizer(name: str, revision: str | None) -> "PreTrainedTokenizerBase":
    """Load a pretrained tokenizer from a local folder or from the hub.

    Raises:
        DataError: if it cannot be loaded. The message names the required files.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()

    def load(source: str) -> "PreTrainedTokenizerBase":
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)

    tokenizer = load_pretrained("data.tokenizer", name, revision, load, DataError)
    # if the vocabulary is missing, the library returns a tokenizer that has only special tokens
    if not tokenizer.is_fast or tokenizer.pad_token_id is None or len(tokenizer) <= len(tokenizer.all_special_ids):
        problem = f"{name} has no tokenizer.json with a vocabulary and a padding token"
        raise DataError(f"data.tokenizer: {problem}; put {MODEL_FILES} there")
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int, lowercase: bool) -> "PreTrainedTokenizerBase":
    """Train a WordPiece tokenizer. The same texts always give the same tokenizer.

    Args:
        texts: Training texts, which are read twice.
        vocab_size: Number of tokens. It is larger if the texts have more distinct characters, because each is a token.
        lowercase: Convert texts to lower case. Accents are kept.

    Raises:
        DataError: if no text has a word.
    """
    from tokenizers import decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    special = list(SPECIAL_TOKENS.values())
    # `tokenizers` numbers the characters inside words (##a) in the order of a hash table. It uses these numbers to choose
    # between equally frequent pairs (https://github.com/huggingface/tokenizers/issues/1794). If the characters are passed in
    # sorted order, the vocabulary depends only on the texts.
    characters = _train_vocabulary(texts, 0, lowercase, special)
    if len(characters) == len(special):
        raise DataError(NO_WORDS)
    inside = sorted(token for token in characters if len(token) == 3 and token.startswith("##"))
    vocabulary = _train_vocabulary(texts, vocab_size, lowercase, [*special, *inside])
    tokenizer = _untrained_tokenizer(lowercase)
    tokenizer.model = models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"])
    tokenizer.decoder = decoders.WordPiece()
    begin, end = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} $B:1 {end}:1",
        special_tokens=[(token, vocabulary[token]) for token in (begin, end)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]  # the default omits token_type_ids
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=names, **SPECIAL_TOKENS)


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    chunks: Iterable[list[tuple[str, str | None]]],
    num_rows: int,
    max_length: int,
    folder: Path,
) -> None:
    """Convert texts to token ids, and write them to .npy files.

    The files are ``ids`` of all rows (int32), ``lengths`` (N,) of int64, and ``second_starts`` (N,) of int64 for pairs.

    Args:
        tokenizer: A fast tokenizer.
        chunks: Lists of texts and second texts. The latter are None for single texts.
        num_rows: Number of all texts N, for the progress bar.
        max_length: Maximum number of tokens in a row. Longer rows are truncated; in pairs, the longer text is truncated.
        folder: Folder for the files.
    """
    backend = truncating(tokenizer, max_length)
    with ExitStack() as stack:
        progress = stack.enter_context(
            tqdm(total=num_rows, desc="tokenizing", unit=" texts", disable=None, leave=False)
        )
        files: dict[str, GrowingArray] = {}
        for chunk in chunks:
            arrays = encode_chunk(backend, chunk)
            for name, array in arrays.items():
                if name not in files:
                    files[name] = stack.enter_context(GrowingArray(folder / f"{name}.npy", array.dtype))
                files[name].append(array)
            progress.update(len(chunk))


def truncating(tokenizer: "PreTrainedTokenizerBase", max_length: int) -> "Tokenizer":
    """Return a copy of a tokenizer that truncates texts to `max_length` tokens and does not pad them."""
    original = tokenizer.backend_tokenizer
    backend = type(original).from_str(original.to_str())
    backend.no_padding()
    backend.enable_truncation(max_length)
    return backend


def encode_chunk(backend: "Tokenizer", chunk: Sequence[tuple[str, str | None]]) -> dict[str, np.ndarray]:
    """Return the arrays that `encode` writes for some texts and second texts."""
    encodings = backend.encode_batch_fast([text if second is None else (text, second) for text, second in chunk])
    arrays: dict[str, np.ndarray] = {
        "ids": np.array([token for encoding in encodings for token in encoding.ids], np.int32),
        "lengths": np.array([len(encoding.ids) for encoding in encodings], np.int64),
    }
    if chunk[0][1] is not None:
        second_starts = [len(encoding.ids) - sum(encoding.type_ids) for encoding in encodings]
        arrays["second_starts"] = np.array(second_starts, np.int64)
    return arrays


def _train_vocabulary(texts: Iterable[str], size: int, lowercase: bool, special: list[str]) -> dict[str, int]:
    from tokenizers import trainers

    tokenizer = _untrained_tokenizer(lowercase)
    trainer = trainers.WordPieceTrainer(vocab_size=size, min_frequency=2, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_without_long_words(texts, lowercase), trainer)
    return tokenizer.get_vocab()


def _without_long_words(texts: Iterable[str], lowercase: bool) -> Iterator[str]:
    """Yield texts without the words that WordPiece always replaces by the unknown token.

    With them, the training time grows with the square of their length.
    """
    tokenizer = _untrained_tokenizer(lowercase)

    def shorten(run: re.Match[str]) -> str:
        words = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(run[0]))
        return " ".join(word for word, _ in words if len(word) <= MAX_WORD)

    return (LONG_RUN.sub(shorten, text) for text in texts)


def _untrained_tokenizer(lowercase: bool) -> "Tokenizer":
    """Return a tokenizer without a vocabulary that splits texts into words as BERT does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
