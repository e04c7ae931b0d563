"""Texts with labels, from files of the user or from a dataset of the Hugging Face hub.

Texts are read and tokenized once. Texts and token ids are stored in a cache and memory-mapped.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from datamodules.classification import ClassificationDataModule, DataError, DataSpec, Labelled, Split
from datamodules.parts.batches import AugmentContext, EpochOrder, TensorBatches, to_device
from datamodules.parts.cache import describe_files, load_or_create
from datamodules.parts.labels import MAX_NUMBERS, check_missing, class_names_of, class_numbers, without_missing
from datamodules.parts.table_files import estimated_rows
from datamodules.parts.text_files import (
    CHUNK,
    Columns,
    LabelledTexts,
    Row,
    check_file,
    copy_rows,
    map_rows,
    read_file,
    read_hub,
    read_lines,
)
from datamodules.parts.tokenizer import (
    NO_WORDS,
    encode,
    encode_chunk,
    pretrained_tokenizer,
    train_tokenizer,
    truncating,
)
from datamodules.parts.tokens import GPU_MULTIPLE, XLA_LENGTHS, LengthOrder, TokenRows, round_up
from engine.contracts import InputPart, NewInputs, OptionError
from engine.terminal import print_line

if TYPE_CHECKING:
    import pyarrow
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

rank_zero_print = rank_zero_only(print_line)
MANY_UNKNOWN = 0.05  # fraction of unknown tokens above which a warning is printed


class Text(ClassificationDataModule):
    """Texts, or pairs of texts, from CSV, TSV, JSON Lines or Parquet files or from the hub.

    The rows of a batch have similar lengths, so there is little padding. Labels are words or numbers.

    Args:
        train: File with the training set; if `dataset` is set, name of the split.
        val: File or split with the validation set; null to use a fraction of the training set.
        test: File or split with the test set; null to use a fraction of the training set.
        text_column: Name of the column with the text.
        text_pair_column: Name of the column with the second text of a pair; null for single texts.
        target: Name of the column with the label.
        dataset: Name of a dataset on the Hugging Face hub, such as stanfordnlp/sst2; null for files.
        dataset_subset: Subset of the dataset, if it has several.
        dataset_revision: Commit, tag or branch of the dataset; null for the newest.
        tokenizer: Folder or hub name of the pretrained model whose tokenizer is used (write ${model.pretrained}); null to
            train a WordPiece tokenizer on the training texts.
        tokenizer_revision: Commit, tag or branch of the tokenizer on the hub; null for the newest.
        vocab_size: Number of tokens of a trained tokenizer. It is larger if the texts contain more distinct characters.
        lowercase: Convert texts to lower case. A pretrained tokenizer has its own setting.
        max_length: Maximum number of tokens in a row. Longer rows are truncated.
        max_tokens: Maximum number of tokens in a training batch per device, including padding. Each batch is one step, so a
            row in a small batch of long rows has more weight.
        eval_max_tokens: Maximum number of tokens in a validation or test batch per device, including padding.
        batch_size: Maximum number of rows in a training batch per device.
        eval_batch_size: Maximum number of rows in a validation or test batch per device.
        mask_fraction: Probability that the mask token replaces a token of a training text. Each epoch chooses other tokens.
            Special tokens are kept. It helps distillation (Tang et al. 2019, https://arxiv.org/abs/1903.12136).
        pad_to_multiple_of: Batches are padded to a multiple of this number of tokens; null for 8 on GPUs, whose matrix units
            need it, a quarter of `max_length` on TPUs, which compile each length, and 1 on other devices.
        val_fraction: Fraction of the training set that is used for validation if `val` is null.
        test_fraction: Fraction of the training set that is used for the test if `test` is null.
        split_seed: Seed of both splits and of the folds.
        num_folds: Number of folds for cross-validation; null for no folds. The folds are stratified and depend only on this
            number and on `split_seed`. If `test` is null, a fold is the test set. Otherwise, a fold of the training set is
            the validation set, and `val_fraction` is not used.
        fold: Number of the fold that is held out, from 0 to num_folds - 1.
        cache: Folder for tokenized texts. It can be deleted at any time.
        memory_gigabytes: Maximum main memory for the token ids; null for half of the free memory. Ids that do not fit are
            read from the cache in every epoch.
        seed: Seed of shuffling. `train.py` passes the seed of the experiment.
        label_column: Old name of `target`.
    """

    modality = "tokens"
    requires: ClassVar[dict[str, str]] = {"transformers": "bert"}

    def __init__(
        self,
        train: str,
        val: str | None = None,
        test: str | None = None,
        text_column: str = "text",
        text_pair_column: str | None = None,
        target: str = "label",
        dataset: str | None = None,
        dataset_subset: str | None = None,
        dataset_revision: str | None = None,
        tokenizer: str | None = None,
        tokenizer_revision: str | None = None,
        vocab_size: Annotated[int, ">= 100"] = 8000,
        lowercase: bool = True,
        max_length: Annotated[int, ">= 4"] = 128,
        max_tokens: Annotated[int, ">= 4"] = 2048,
        eval_max_tokens: Annotated[int, ">= 4"] = 8192,
        batch_size: Annotated[int, ">= 1"] = 128,
        eval_batch_size: Annotated[int, ">= 1"] = 1000,
        mask_fraction: Annotated[float, ">= 0, < 1"] = 0.0,
        pad_to_multiple_of: Annotated[int, ">= 1"] | None = None,
        val_fraction: Annotated[float, "> 0, < 1"] = 0.1,
        test_fraction: Annotated[float, "> 0, < 1"] = 0.1,
        split_seed: Annotated[int, ">= 0"] = 0,
        num_folds: Annotated[int, ">= 2"] | None = None,
        fold: Annotated[int, ">= 0"] = 0,
        cache: str = "data/cache",
        memory_gigabytes: Annotated[float, ">= 0"] | None = None,
        seed: int = 0,
        label_column: str | None = None,
    ) -> None:
        options: dict[str, Any] = {"normalize": False, "seed": seed, "num_folds": num_folds, "fold": fold}
        super().__init__(batch_size, eval_batch_size, val_fraction, split_seed, **options)
        given: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.sources = {split: source for split, source in given.items() if source is not None}
        if label_column is not None:
            rank_zero_print("data.label_column is deprecated; use data.target")
            target = label_column
        self.columns, self.target = Columns(text_column, text_pair_column, target), target
        self.dataset, self.dataset_subset, self.dataset_revision = dataset, dataset_subset, dataset_revision
        self.pretrained, self.revision = tokenizer, tokenizer_revision
        self.vocab_size, self.lowercase, self.max_length = vocab_size, lowercase, max_length
        self.max_tokens, self.eval_max_tokens, self.multiple = max_tokens, eval_max_tokens, pad_to_multiple_of
        self.mask_fraction = mask_fraction
        self.test_fraction, self.cache = test_fraction, Path(cache).expanduser()
        self.memory_gigabytes = memory_gigabytes
        paths = {source if dataset else str(Path(source).expanduser().resolve()) for source in self.sources.values()}
        if len(paths) < len(self.sources):
            hint = "use different files for training and evaluation"
            raise OptionError(f"data.train: another split uses the same file; {hint}")
        if target in (text_column, text_pair_column):
            hint = "the model would see the label"
            raise OptionError(f"data.target: {target} is also a column of text; {hint}")
        for key, limit in (("data.max_tokens", max_tokens), ("data.eval_max_tokens", eval_max_tokens)):
            if limit < self._longest:
                problem = f"{limit} is too small for a row: data.max_length={max_length} needs {self._longest} tokens"
                raise OptionError(f"{key}: {problem}; raise it or lower data.max_length")
        self.class_names: tuple[str, ...] = ()
        self._prepared: dict[Split, Labelled] = {}
        self._texts: dict[Split, LabelledTexts] = {}
        self._loaded: dict[Path, tuple[PreTrainedTokenizerBase, Tokenizer]] = {}  # for the folder of a run
        self._rows: dict[Split, tuple[Split, Tensor]] = {}  # for each split, its source and its rows in that source

    @property
    def spec(self) -> DataSpec:
        """The description of the data. The texts are read and tokenized first, because the classes depend on them."""
        self.prepare_data()
        vocab_size, pad_id = len(self.tokenizer), int(self.tokenizer.pad_token_id)
        return DataSpec(self.modality, (), self.class_names, vocab_size, pad_id, self._longest)

    @property
    def _longest(self) -> int:
        """`max_length` including padding."""
        return round_up(self.max_length, self.multiple or GPU_MULTIPLE)

    def prepare_data(self) -> None:
        """Read, check, split and tokenize the texts, once."""
        if self._prepared:
            return
        texts = {split: self._read(split, source) for split, source in self.sources.items()}
        names = {split: self._labels(labelled) for split, labelled in texts.items()}
        self.class_names = class_names_of(names["train"], MAX_NUMBERS)
        labels = {split: class_numbers(names[split], self.class_names, texts[split].place) for split in texts}
        rows = self.choose_rows(labels, self.class_names)
        self.tokenizer = self._make_tokenizer(texts["train"], rows["train"][1])
        if self.mask_fraction and self.tokenizer.mask_token_id is None:
            raise OptionError("data.mask_fraction: the tokenizer has no mask token")
        self._special_ids = torch.tensor(self.tokenizer.all_special_ids)
        tokens = {split: self._tokenize(labelled) for split, labelled in texts.items()}
        if int(tokens["train"].lengths.max()) <= self.tokenizer.num_special_tokens_to_add(
            bool(self.columns.second_text)
        ):
            raise DataError(NO_WORDS)
        self._prepared = {
            split: (tokens[source].select(chosen), labels[source][chosen]) for split, (source, chosen) in rows.items()
        }
        self._texts, self._rows = texts, rows
        self._warn_about_lost_text(self._prepared["train"][0])

    def read_inputs(self, source: Path, spec: DataSpec, folder: Path, with_labels: bool = False) -> NewInputs:
        """Read texts from a file, and tokenize them. A .txt file has a text per line."""
        problems: dict[int, str] = {}

        def on_broken(number: int, error: DataError) -> Row:
            problems[number] = str(error)
            pair = self.columns.second_text and "-"
            return Row(number, "-", pair, "")

        columns = replace(self.columns, label=self.columns.label if with_labels else None)
        if source.suffix.lower() == ".txt":
            rows = read_lines("INPUT", source)
        else:
            rows = read_file("INPUT", source, columns, on_broken)
        self._load_tokenizer(folder)
        return NewInputs(self._encoded(rows, problems, with_labels), estimated_rows(source))

    def take_inputs(self, values: Any, spec: DataSpec, folder: Path) -> NewInputs:
        """Take a list of texts, or of pairs of texts."""
        pairs = [(text, None) if isinstance(text, str) else text for text in values]
        if any(len(pair) != 2 or (pair[1] is None) != (self.columns.second_text is None) for pair in pairs):
            expected = "texts" if self.columns.second_text is None else "pairs of texts"
            raise DataError(f"INPUT: the model takes a list of {expected}")
        self._load_tokenizer(folder)
        rows = (Row(number, text, second, "") for number, (text, second) in enumerate(pairs, 1))
        return NewInputs(self._encoded(rows, {}, with_labels=False), len(pairs))

    def _load_tokenizer(self, folder: Path) -> None:
        """Load the tokenizer of a run, but only once, because a server takes new texts all the time."""
        if folder not in self._loaded:
            tokenizer = pretrained_tokenizer(str(folder / "tokenizer"), None)
            self._loaded = {folder: (tokenizer, truncating(tokenizer, self.max_length))}
        self.tokenizer, self._backend = self._loaded[folder]

    def _encoded(self, rows: Iterator[Row], problems: Mapping[int, str], with_labels: bool) -> Iterator[InputPart]:
        backend, first = self._backend, 1
        while chunk := list(islice(rows, CHUNK)):
            arrays = encode_chunk(backend, [(row.text, row.second_text) for row in chunk])
            found = {i: problems[row.number] for i, row in enumerate(chunk) if row.number in problems}
            labels = [row.label for row in chunk] if with_labels else None
            yield InputPart(range(first, first + len(chunk)), self._token_rows(arrays), labels, found)
            first += len(chunk)

    def splits(self) -> dict[Split, Labelled]:
        """Return the three splits."""
        self.prepare_data()
        return self._prepared

    def place(self, split: Split, row: int) -> str:
        """Return ``FILE:LINE`` of a row."""
        source, rows = self._rows[split]
        return self._texts[source].place(int(rows[row]))

    def _batches(self, split: Split, batch_size: int, shuffle: bool) -> TensorBatches:
        on_xla = self.trainer is not None and self.trainer.strategy.root_device.type == "xla"
        if on_xla and self.multiple is None:
            inputs, labels = self._splits[split]
            self._splits[split] = replace(inputs, multiple=self._longest // XLA_LENGTHS), labels
        return super()._batches(split, batch_size, shuffle)

    def order(self, inputs: TokenRows, batch_size: int, shuffle: bool, rank: int, world_size: int) -> EpochOrder:
        """Return batches of rows of similar length."""
        max_tokens = self.max_tokens if shuffle else self.eval_max_tokens
        lengths = inputs.padded(inputs.lengths)
        return LengthOrder(lengths, batch_size, max_tokens, shuffle, self.seed, rank, world_size)

    def augment(self, inputs: Any, context: AugmentContext) -> Any:
        """Replace random tokens of a batch, except special tokens, by the mask token."""
        if self.mask_fraction == 0:
            return inputs
        ids = inputs["input_ids"]  # (B, T)
        is_masked = torch.rand(ids.shape, generator=context.generator, device=ids.device) < self.mask_fraction
        is_special = torch.isin(ids, to_device(self._special_ids, ids.device))
        return {**inputs, "input_ids": torch.where(is_masked & ~is_special, self.tokenizer.mask_token_id, ids)}

    @property
    def is_augmented(self) -> bool:
        return self.mask_fraction > 0 or type(self).augment is not Text.augment

    def save(self, folder: Path) -> None:
        """Write the tokenizer to the folder ``tokenizer/``, for `transformers.AutoTokenizer.from_pretrained`."""
        self.tokenizer.model_max_length = self.max_length
        self.tokenizer.save_pretrained(folder / "tokenizer")

    def has_tokenizer_of(self, folder: Path) -> bool:
        """Return whether the run in a folder has the same token ids as this data."""
        return pretrained_tokenizer(str(folder / "tokenizer"), None).get_vocab() == self.tokenizer.get_vocab()

    def tokens(self, ids: Tensor) -> list[str]:
        """Return the tokens of a row of ids (T,) as text."""
        return [str(self.tokenizer.convert_ids_to_tokens(token)) for token in ids.tolist()]

    def _read(self, split: Split, source: str) -> LabelledTexts:
        """Copy the rows of a source to the cache, and memory-map them."""
        key, path = f"data.{split}", Path(source).expanduser()
        if self.dataset is None:
            check_file(key, path)
            name, files, rows = str(path), [str(path)], read_file(key, path, self.columns)
        else:
            name = f"{self.dataset} ({source})"
            subset, revision = self.dataset_subset, self.dataset_revision
            files, rows = read_hub(self.dataset, subset, revision, key, source, self.columns)

        def load(folder: Path) -> LabelledTexts:
            return map_rows(name, folder / "rows.arrow", folder.name)

        identity = (self.columns, name, *describe_files(files))
        return load_or_create(self.cache, "rows", identity, lambda folder: copy_rows(rows, folder / "rows.arrow"), load)

    def _labels(self, texts: LabelledTexts) -> "pyarrow.ChunkedArray":
        labels = without_missing(texts.table["label"])
        check_missing(labels, self.target, texts.place)
        return labels

    def _warn_about_lost_text(self, rows: TokenRows) -> None:
        """Print how many texts were truncated, and whether many tokens are unknown. Both can reduce the accuracy."""
        num_full = int((rows.lengths >= self.max_length).sum())
        num_unknown = sum(int((ids == self.tokenizer.unk_token_id).sum()) for ids in rows.ids.split(1 << 20))
        unknown = num_unknown / len(rows.ids)
        if num_full:
            limit = f"data.max_length={self.max_length}"
            rank_zero_print(
                f"data: {num_full:,} of {len(rows):,} training texts reach {limit} tokens and may be truncated"
            )
        if unknown > MANY_UNKNOWN:
            rank_zero_print(
                f"data: {unknown:.0%} of all tokens are unknown to the tokenizer; is it for another language?"
            )

    def _make_tokenizer(self, texts: LabelledTexts, rows: Tensor) -> "PreTrainedTokenizerBase":
        """Load the pretrained tokenizer, or train a tokenizer on `rows` of the training texts."""
        if self.pretrained is not None:
            return pretrained_tokenizer(self.pretrained, self.revision)
        is_training = np.zeros(len(texts), bool)
        is_training[rows.numpy()] = True

        class TrainingTexts:
            def __iter__(self) -> Iterator[str]:
                for chunk in texts.chunks(is_training):
                    for pair in chunk:
                        yield from (text for text in pair if text is not None)

        def create(folder: Path) -> None:
            train_tokenizer(TrainingTexts(), self.vocab_size, self.lowercase).save_pretrained(folder)

        def load(folder: Path) -> "PreTrainedTokenizerBase":
            return pretrained_tokenizer(str(folder), None)

        key = (self.vocab_size, self.lowercase, texts.digest, hashlib.sha256(is_training.tobytes()).hexdigest())
        return load_or_create(self.cache, "tokenizer", key, create, load)

    def _tokenize(self, texts: LabelledTexts) -> TokenRows:
        """Tokenize all rows of a source. The ids are memory-mapped."""

        def create(folder: Path) -> None:
            encode(self.tokenizer, texts.chunks(), len(texts), self.max_length, folder)

        def load(folder: Path) -> TokenRows:
            files = list(folder.glob("*.npy"))
            mode: Literal["c"] | None = None if self._fits_in_memory(sum(f.stat().st_size for f in files)) else "c"
            arrays = {path.stem: np.load(path, mmap_mode=mode) for path in files}
            return self._token_rows(arrays)

        key = (self.tokenizer.backend_tokenizer.to_str(), self.max_length, texts.digest)
        return load_or_create(self.cache, "tokens", key, create, load)

    def _token_rows(self, arrays: Mapping[str, np.ndarray]) -> TokenRows:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        lengths, pad_id = tensors["lengths"], int(self.tokenizer.pad_token_id)
        starts = lengths.cumsum(0) - lengths
        return TokenRows(tensors["ids"], starts, lengths, tensors.get("second_starts"), pad_id, self.multiple)
