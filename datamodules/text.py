"""Texts with labels: your own files, or a data set of the Hugging Face hub.

Tokenized once; what was tokenized is kept under a key of the texts and the tokenizer, and mapped into memory.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from datamodules.classification import ClassificationDataModule, DataError, DataSpec, Labelled, Split, hold_out
from datamodules.parts.batches import EpochOrder
from datamodules.parts.cache import damaged, kept
from datamodules.parts.download import locked
from datamodules.parts.text_files import Columns, LabelledTexts, read_file, read_hub
from datamodules.parts.tokenizer import encode, pretrained_tokenizer, trained_tokenizer
from datamodules.parts.tokens import GPU_MULTIPLE, LengthOrder, TokenRows, round_up
from engine.contracts import OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

rank_zero_print = rank_zero_only(print)
MANY_UNKNOWN = 0.05  # share of unknown tokens that a user is told of


class Text(ClassificationDataModule):
    """Texts, or pairs of texts, from CSV, TSV or JSON Lines files (UTF-8, with a header), or from the hub.

    Batches hold rows of like length, so that there is next to no padding. Labels are words or whole numbers.

    Args:
        train: File of the training set; with `dataset`, the name of its split.
        val: Likewise of the validation set; null to cut it from the training set.
        test: Likewise of the test set; null to cut it from the training set.
        text_column: Name of the column with the text.
        text_pair_column: Name of the column with the second text of a pair; null for single texts.
        label_column: Name of the column with the label.
        dataset: Name of a data set on the Hugging Face hub, as in stanfordnlp/sst2; null for files.
        dataset_subset: Name of its subset, where it has several.
        dataset_revision: Its commit, tag or branch; null for the newest.
        tokenizer: Folder or hub name of the pretrained model whose tokenizer is used (write ${model.pretrained}); null for
            a WordPiece vocabulary made from the training texts alone.
        tokenizer_revision: Its commit, tag or branch on the hub; null for the newest.
        vocab_size: Tokens of a vocabulary that is made (more, if there are more characters); a pretrained one has its own.
        lowercase: Make no difference between capitals and small letters; a pretrained tokenizer decides for itself.
        max_length: Most tokens of a row; the rest of a longer one is cut off.
        max_tokens: Most tokens of a training batch and device, padding included. Each batch is one step, so a row among few
            long ones counts more than one among many short ones.
        eval_max_tokens: Likewise of a validation or test batch.
        batch_size: Most rows of a training batch and device.
        eval_batch_size: Likewise of a validation or test batch.
        pad_to_multiple_of: Batches are padded to a multiple of so many tokens; null for 8 on GPUs, whose matrix units want
            it, and 1 elsewhere, which wastes least.
        val_fraction: Share of the training set that is held out for validation, where `val` is null.
        test_fraction: Share of the training set that is held out for the test, where `test` is null.
        split_seed: Of both.
        cache: Folder of what was tokenized; it can be deleted at any time.
        seed: Of the order; `train.py` hands over the experiment's.
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
        label_column: str = "label",
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
        pad_to_multiple_of: Annotated[int, ">= 1"] | None = None,
        val_fraction: Annotated[float, "> 0, < 1"] = 0.1,
        test_fraction: Annotated[float, "> 0, < 1"] = 0.1,
        split_seed: Annotated[int, ">= 0"] = 0,
        cache: str = "data/cache",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, val_fraction, split_seed, normalize=False, seed=seed)
        given: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.sources = {part: source for part, source in given.items() if source is not None}
        self.columns = Columns(text_column, text_pair_column, label_column)
        self.dataset, self.dataset_subset, self.dataset_revision = dataset, dataset_subset, dataset_revision
        self.pretrained, self.revision = tokenizer, tokenizer_revision
        self.vocab_size, self.lowercase, self.max_length = vocab_size, lowercase, max_length
        self.max_tokens, self.eval_max_tokens, self.multiple = max_tokens, eval_max_tokens, pad_to_multiple_of
        self.test_fraction, self.cache = test_fraction, Path(cache).expanduser()
        places = {source if dataset else str(Path(source).expanduser().resolve()) for source in self.sources.values()}
        if len(places) < len(self.sources):
            raise OptionError(
                "data.train: is also the file of another split; use different files for training and evaluation"
            )
        if label_column in (text_column, text_pair_column):
            raise OptionError(
                f"data.label_column: {label_column} is a column of text, too; a model would read the answer"
            )
        for key, most in (("data.max_tokens", max_tokens), ("data.eval_max_tokens", eval_max_tokens)):
            if most < self._room:
                hint = f"data.max_length={max_length} needs {self._room}; raise the one or lower the other"
                raise OptionError(f"{key}: {most} is too little for one row; {hint}")
        self.class_names: tuple[str, ...] = ()
        self._prepared: dict[Split, Labelled] = {}

    @property
    def spec(self) -> DataSpec:
        """Classes and tokens; the files are read and tokenized for it."""
        self.prepare_data()
        size, pad_id = len(self.tokenizer), int(self.tokenizer.pad_token_id)
        return DataSpec(self.modality, (), self.class_names, size, pad_id, self._room)

    @property
    def _room(self) -> int:
        """`max_length` with its padding."""
        return round_up(self.max_length, self.multiple or GPU_MULTIPLE)

    def prepare_data(self) -> None:
        """Read, check, split and tokenize, once."""
        if self._prepared:
            return
        texts = {part: self._read(part, source) for part, source in self.sources.items()}
        self.class_names = _class_names(texts["train"])
        labels = {part: self._numbered(one) for part, one in texts.items()}
        rows = {part: (part, torch.arange(len(one))) for part, one in texts.items()}  # of which source, and which ones
        cuts: tuple[tuple[Split, float], ...] = (("test", self.test_fraction), ("val", self.val_fraction))
        for part, fraction in cuts:
            if part not in texts:
                there = rows["train"][1]
                kept, held_out = hold_out(labels["train"][there], f"data.{part}_fraction", fraction, self.split_seed)
                rows["train"], rows[part] = ("train", there[kept]), ("train", there[held_out])
        with locked(self.cache, "data.cache"):
            self.tokenizer = self._make_tokenizer(texts["train"], rows["train"][1])
            tokens = {part: self._tokenized(one) for part, one in texts.items()}
        self._prepared = {part: (tokens[one].select(there), labels[one][there]) for part, (one, there) in rows.items()}
        self._tell_what_is_lost(self._prepared["train"][0])

    def splits(self) -> dict[Split, Labelled]:
        """Training, validation and test, whatever files they come from."""
        self.prepare_data()
        return self._prepared

    def order(self, inputs: TokenRows, batch_size: int, shuffle: bool, rank: int, world_size: int) -> EpochOrder:
        """Rows of like length in one batch."""
        most = self.max_tokens if shuffle else self.eval_max_tokens
        lengths = inputs.rounded(inputs.lengths)
        return LengthOrder(lengths, batch_size, most, shuffle, self.seed, rank, world_size)

    def save(self, folder: Path) -> None:
        """The tokenizer, as ``tokenizer/``: `transformers.AutoTokenizer.from_pretrained` reads it."""
        self.tokenizer.model_max_length = self.max_length
        self.tokenizer.save_pretrained(folder / "tokenizer")

    def tokens(self, ids: Tensor) -> list[str]:
        """Of one row of ids (T,), for people."""
        return [str(self.tokenizer.convert_ids_to_tokens(one)) for one in ids.tolist()]

    def _read(self, split: Split, source: str) -> LabelledTexts:
        if self.dataset is None:
            return read_file(f"data.{split}", Path(source).expanduser(), self.columns)
        return read_hub(self.dataset, self.dataset_subset, self.dataset_revision, f"data.{split}", source, self.columns)

    def _numbered(self, texts: LabelledTexts) -> Tensor:
        """Labels (N,) as numbers; DataError if one does not occur in training."""
        numbers = {name: i for i, name in enumerate(self.class_names)}
        for place, label in zip(texts.places, texts.labels, strict=True):
            if label not in numbers:
                known = ", ".join(self.class_names[:20])
                raise DataError(f"{place}: label {label!r} does not occur in the training set, which has {known}")
        return torch.tensor([numbers[label] for label in texts.labels])

    def _tell_what_is_lost(self, rows: TokenRows) -> None:
        """Texts that were cut, and words that the tokenizer does not know: both are easily missed, and cost accuracy."""
        full = int((rows.lengths >= self.max_length).sum())
        unknown = float((rows.ids == self.tokenizer.unk_token_id).float().mean())
        if full:
            rank_zero_print(
                f"data: {full:,} of {len(rows):,} training texts fill data.max_length={self.max_length}; more was cut off"
            )
        if unknown > MANY_UNKNOWN:
            rank_zero_print(
                f"data: {100 * unknown:.0f} % of all tokens are unknown to the tokenizer; is it for another language?"
            )

    def _make_tokenizer(self, texts: LabelledTexts, rows: Tensor) -> "PreTrainedTokenizerBase":
        """The pretrained one, or one made from `rows` of the training texts."""
        if self.pretrained is not None:
            return pretrained_tokenizer(self.pretrained, self.revision)
        training = [one[i] for one in (texts.texts, texts.seconds) if one for i in rows.tolist()]

        def make(folder: Path) -> None:
            trained_tokenizer(training, self.vocab_size, self.lowercase).save_pretrained(folder)

        made = kept(self.cache, "tokenizer", (self.vocab_size, self.lowercase, *training), make)
        try:
            return pretrained_tokenizer(str(made), None)
        except DataError as error:
            raise damaged(made, error) from None

    def _tokenized(self, texts: LabelledTexts) -> TokenRows:
        """All rows of a source, their ids mapped into memory."""

        def make(folder: Path) -> None:
            for name, array in encode(self.tokenizer, texts.texts, texts.seconds, self.max_length).items():
                np.save(folder / f"{name}.npy", array)

        vocabulary = self.tokenizer.backend_tokenizer.to_str()
        key = (vocabulary, self.max_length, len(texts.seconds), *texts.texts, *texts.seconds)
        folder = kept(self.cache, "tokens", key, make)
        try:
            arrays = {path.stem: np.load(path, mmap_mode="c") for path in folder.glob("*.npy")}
            found = {name: torch.from_numpy(array) for name, array in arrays.items()}
            starts = found["lengths"].cumsum(0) - found["lengths"]
            if len(starts) != len(texts) or int(found["lengths"].sum()) != len(found["ids"]):
                raise ValueError("its lengths do not fit")
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise damaged(folder, error) from None
        pad_id = int(self.tokenizer.pad_token_id)
        return TokenRows(found["ids"], starts, found["lengths"], found.get("second_starts"), pad_id, self.multiple)


def _class_names(texts: LabelledTexts) -> tuple[str, ...]:
    """The labels that occur, numbers in their order, words in the alphabet's."""
    found = set(texts.labels)
    if len(found) < 2:
        raise DataError(f"{texts.source}: every row has the label {texts.labels[0]!r}; two classes are needed")
    if len(found) > len(texts) / 2 and len(texts) > 4:
        raise DataError(
            f"data.label_column: {len(found)} different labels in {len(texts)} rows; is it the right column?"
        )
    numbers = all(re.fullmatch(r"-?\d{1,18}", label) for label in found)
    return tuple(sorted(found, key=lambda label: (int(label) if numbers else 0, label)))
