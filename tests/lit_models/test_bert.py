"""BERT: the same numbers as transformers, three ways in, pretrained or not, from a folder or a hub."""

import importlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification, BertModel

import engine.config.cross_checks
import train
from engine.config.config import load_config
from engine.config.signatures import PROJECT
from engine.contracts import ConfigError, DataError
from lit_models.bert import LitBERT
from lit_models.optimizers import adamw
from tests import hub
from tests.files import minilm, write_bert, write_texts
from tests.runs import curve, figures, run

TOKENS = {"input_shape": [], "num_classes": 3, "vocab_size": 60, "max_length": 16}
SMALL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2}


def model(**options) -> LitBERT:
    torch.manual_seed(0)
    return LitBERT(**{**TOKENS, **options})


def sentences() -> dict[str, torch.Tensor]:
    texts = ["a gripping film", "no", "it is not as good as the other one , and far too long"]
    return dict(AutoTokenizer.from_pretrained(minilm())(texts, padding=True, return_tensors="pt"))


# --- the same as transformers


def test_pretrained_gives_the_logits_of_transformers():
    ours = LitBERT([], 2, vocab_size=30522, max_length=64, pretrained=str(minilm())).eval()
    theirs = BertForSequenceClassification.from_pretrained(minilm(), num_labels=2).eval()
    ours.network.head.load_state_dict(theirs.classifier.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(ours(sentences()), theirs(**sentences()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_changes_nothing(pooling):
    network = model(pooling=pooling, **SMALL).eval()
    ids = torch.randint(1, 60, (2, 5))
    padded = {"input_ids": torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], 1)}
    padded["attention_mask"] = torch.cat([torch.ones(2, 5), torch.zeros(2, 3)], 1)
    torch.testing.assert_close(network(padded), network({"input_ids": ids}))
    assert not torch.allclose(network({"input_ids": padded["input_ids"]}), network({"input_ids": ids}))


def test_pretrained_trains_with_dropout_although_it_comes_in_evaluation_mode():
    ours = LitBERT([], 2, vocab_size=30522, max_length=64, pretrained=str(minilm()))
    assert all(module.training for module in ours.modules())
    assert not torch.equal(ours(sentences()), ours(sentences()))


# --- what stands in a checkpoint


def test_a_checkpoint_loads_without_the_pretrained_model(tmp_path):
    folder = shutil.copytree(minilm(), tmp_path / "model")
    ours = LitBERT([], 2, vocab_size=30522, max_length=64, pretrained=str(folder)).eval()
    torch.save({"state_dict": ours.state_dict(), "hyper_parameters": dict(ours.hparams)}, tmp_path / "a.ckpt")
    shutil.rmtree(folder)
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = LitBERT(**checkpoint["hyper_parameters"]).eval()
    again.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(again(sentences()), ours(sentences()))


# --- options


def test_patches_are_the_image_in_reading_order():
    network = model(input_shape=[2, 4, 6], patch_size=2, **SMALL).network
    image = torch.arange(48.0).view(1, 2, 4, 6)
    network.tokens.projection = torch.nn.Identity()
    patches = network.tokens(image)
    assert patches.shape == (1, 6, 8)
    for i, (top, left) in enumerate((y, x) for y in (0, 2) for x in (0, 2, 4)):
        assert torch.equal(patches[0, i], image[0, :, top : top + 2, left : left + 2].flatten())


def test_each_feature_is_a_token_of_its_own():
    network = model(input_shape=[3], **SMALL).network
    tokens = network.tokens(torch.tensor([[0.0, 1.0, 2.0]]))
    assert tokens.shape == (1, 3, 32)
    assert torch.equal(tokens[0], torch.arange(3.0)[:, None] * network.tokens.weight)


def test_frozen_parts_get_no_gradient_and_do_not_move():
    network = model(freeze_embeddings=True, freeze_layers=1, **SMALL)
    frozen = {name for name, one in network.named_parameters() if not one.requires_grad}
    assert frozen
    assert all(name.startswith(("network.encoder.embeddings.", "network.encoder.encoder.layer.0.")) for name in frozen)
    before = {name: one.clone() for name, one in network.named_parameters()}
    optimizer = adamw(network.network, lr=0.1)
    network({"input_ids": torch.randint(1, 60, (4, 5))}).sum().backward()
    optimizer.step()
    moved = {name for name, one in network.named_parameters() if not torch.equal(one, before[name])}
    assert not moved & frozen
    assert "network.head.weight" in moved


def test_layer_decay_scales_the_rate_from_the_top_down():
    network = model(layer_decay=0.5, **SMALL).network
    groups = adamw(network, lr=1.0).param_groups
    names = {id(one): name for name, one in network.named_parameters()}
    rates = {names[id(one)]: group["lr"] for group in groups for one in group["params"]}
    assert len(rates) == len(names)
    assert rates["head.weight"] == rates["encoder.pooler.dense.bias"] == 1.0
    assert rates["encoder.encoder.layer.1.output.dense.weight"] == 0.5
    assert rates["encoder.encoder.layer.0.output.dense.bias"] == 0.25
    assert rates["encoder.embeddings.word_embeddings.weight"] == 0.125
    assert groups[0]["lr"] == 1.0  # the one that is shown in TensorBoard
    assert {group["lr"] for group in adamw(model(**SMALL).network, lr=0.1).param_groups} == {0.1}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_gradient_checkpointing_changes_no_gradient(dropout):
    """Without dropout the fused kernel could be chosen the second time, and the plain one the first."""
    gradients = []
    for checkpointing in (False, True):
        network = model(gradient_checkpointing=checkpointing, dropout=dropout, **SMALL).train()
        torch.manual_seed(1)
        network({"input_ids": torch.arange(1, 13).view(2, 6)}).square().sum().backward()
        gradients.append([one.grad for one in network.parameters()])
        assert any(getattr(one, "gradient_checkpointing", False) for one in network.modules()) == checkpointing
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_shape": [1, 28, 28], "patch_size": 5}, "model.patch_size: 5 does not divide 28 x 28 pixels; choose one of"),
        ({"hidden_size": 30, "num_heads": 4}, "model.num_heads: 4 does not divide model.hidden_size 30"),
        ({"num_layers": 2, "freeze_layers": 3}, "model.freeze_layers: 3 is more than the 2 layers of the encoder"),
        ({"vocab_size": None}, "model: tokens (input_shape=()) need vocab_size and max_length"),
        ({"pretrained": str(minilm()), "num_layers": 2}, f"model.num_layers: {minilm()} sets it; leave it out"),
        ({"pretrained": str(minilm()), "max_length": 600}, "but the data has 600; set a smaller data.max_length"),
        ({"pretrained": str(minilm()), "vocab_size": 40_000}, "has 30522 tokens, but the tokenizer has 40000; set"),
        ({"pretrained": str(minilm()), "input_shape": [1, 64, 64], "patch_size": 2}, "1025; set a larger model.patch_size"),
        ({"pretrained": "/no/such"}, "model.pretrained: /no/such is neither a folder nor the name of a model on the hub"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match="model") as caught:
        model(**options)
    assert message in str(caught.value)


# --- folders that hold no BERT


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_bert(tmp_path / "bert")


def refused(path: Path | str) -> str:
    with pytest.raises(ValueError, match=r"model\.pretrained") as caught:
        model(pretrained=str(path), vocab_size=30522)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_as_transformers_saves_it(folder):
    assert model(pretrained=str(folder), vocab_size=30522).network.encoder.config.hidden_size == 32


def test_pickled_weights_are_not_read(folder):
    torch.save(
        model(pretrained=str(folder), vocab_size=30522).network.encoder.state_dict(), folder / "pytorch_model.bin"
    )
    (folder / "model.safetensors").unlink()
    BertModel.from_pretrained(folder)  # which the library itself would read
    assert "put config.json, model.safetensors, tokenizer.json and tokenizer_config.json into" in refused(folder)


@pytest.mark.needs("text")
def test_an_empty_folder_a_broken_file_and_another_model(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty")
    shutil.copy(folder / "config.json", tmp_path / "empty")
    with pytest.raises(
        DataError, match=r"has no tokenizer\.json with a vocabulary and a padding token; put config\.json, model"
    ):
        importlib.import_module("datamodules.parts.tokenizer").pretrained_tokenizer(str(tmp_path / "empty"), None)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:1000])
    assert "cannot be loaded (" in refused(folder)
    (folder / "model.safetensors").write_bytes(content)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}), encoding="utf-8")
    assert "is a model of the type roberta; only bert is supported" in refused(folder)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}), encoding="utf-8")
    assert "has no weights for encoder.layer.2" in refused(folder)


def set_values(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"is_decoder": True},
        {"is_decoder": True, "add_cross_attention": True},
        {"is_decoder": True, "use_cache": False},
        {"add_cross_attention": True},
        {"chunk_size_feed_forward": 7},
        {"return_dict": False},
        {"output_attentions": True, "attn_implementation": "eager"},
        {"output_hidden_states": True},
        {"hidden_act": "relu"},
        {"hidden_act": "gelu_new", "layer_norm_eps": 0.1},
        {"pad_token_id": None},
        {"pad_token_id": 7},
        {"dtype": "bfloat16", "torch_dtype": "float16"},
        {"is_encoder_decoder": True},
        {"position_embedding_type": "absolute", "pruned_heads": {}},
        {"problem_type": "regression", "classifier_dropout": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_checkpoint_computes_what_the_pretrained_config_says(folder, values, pooling):
    set_values(folder, **values)
    ours = model(pretrained=str(folder), vocab_size=30522, pooling=pooling).eval()
    again = LitBERT(**ours.hparams).eval()
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(sentences()), ours(sentences()))
    set_values(folder, return_dict=True, chunk_size_feed_forward=0, add_cross_attention=False)
    theirs = BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    hidden = theirs(**sentences())
    ids, mask = sentences()["input_ids"], sentences()["attention_mask"][:, :, None]
    mean = (hidden.last_hidden_state * mask).sum(1) / mask.sum(1)
    expected = ours.network.head(hidden.pooler_output if pooling == "cls" else mean)
    torch.testing.assert_close(ours(sentences()), expected, rtol=1e-4, atol=1e-5)
    row = ids[:1, :3]
    torch.testing.assert_close(ours({"input_ids": row}), ours({"input_ids": row, "attention_mask": row * 0 + 1}))


@pytest.mark.parametrize(
    "values",
    [
        {"position_embedding_type": "relative_key"},
        {"pruned_heads": {"0": [1]}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"hidden_act": None},
        {"hidden_act": "nonsense"},
        {"num_attention_heads": 3},
        {"hidden_size": 30},
        {"hidden_size": "32"},
        {"type_vocab_size": 5},
    ],
    ids=str,
)
def test_a_pretrained_config_that_cannot_be_kept_is_refused(folder, values):
    set_values(folder, **values)
    assert refused(folder).startswith(f"model.pretrained: {folder} ")


# --- through the command


def text_options(root: Path) -> list[str]:
    write_texts(root / "text/train.tsv", 300)
    return [f"data.train={root}/text/train.tsv", f"data.cache={root}/cache", "trainer.precision=32-true"]


@pytest.mark.needs("text")
def test_text_from_scratch_learns_and_predicts_raw_text_from_the_run_folder_alone(tmp_path, capsys):
    small = [
        "data.vocab_size=300",
        "model.hidden_size=32",
        "trainer.max_epochs=6",
        "optimizer.lr=0.005",
        "data.batch_size=16",
    ]
    done = run(tmp_path / "runs", "--config", "configs/text_bert.yaml", *text_options(tmp_path), *small)
    assert figures(done)["test/accuracy"] > 0.9
    assert 0 <= curve(done, "train/padding_share")[0] < 0.5
    shutil.rmtree(tmp_path / "text")
    shutil.rmtree(tmp_path / "cache")
    (code,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs/text.md").read_text(encoding="utf-8"), re.S)
    code = re.sub(r'"runs/.*?"', repr(str(done)), code.replace("a fine film", "great , and MOVING music"))
    code = code.replace("too long", "an awful film")
    capsys.readouterr()
    exec(compile(code, "text.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == "['good', 'bad']\n"


@pytest.mark.needs("text")
@pytest.mark.parametrize("tokenizer", ["null", "another/model"])
def test_a_pretrained_model_with_another_vocabulary_is_refused_without_torch(tokenizer):
    problem = f"data.tokenizer: is {tokenizer}, but a pretrained model needs its own tokenizer; set data.token"
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load_config("configs/sst2_bert.yaml", [f"data.tokenizer={tokenizer}", "model.pretrained=some/model"])


@pytest.mark.needs("text")
def test_the_tokenizer_is_of_the_same_revision():
    config = load_config("configs/sst2_bert.yaml", ["model.revision=abc"])
    assert config["data.tokenizer_revision"] == "abc"
    assert load_config("configs/sst2_bert.yaml")["data.tokenizer_revision"] is None


@pytest.mark.needs("text")
def test_files_that_are_missing_are_told_at_once(tmp_path, capsys):
    """Before torch is imported, and before there is a run's folder; what is only shown needs no file."""
    root = f"run.root={tmp_path}/runs"
    assert train.main(["--config", "configs/text_bert.yaml", "data.train=data/no.tsv", root]) == 2
    problem = "data.train: there is no file data/no.tsv; give a .csv, .tsv or .jsonl file\n"
    assert capsys.readouterr().err == f"error: command line: {problem}"
    write_texts(tmp_path / "train.tsv", 3)
    own = ["data.dataset=null", f"data.train={tmp_path}/train.tsv", root]
    assert train.main(["--config", "configs/sst2_bert.yaml", *own]) == 2
    problem = (
        "data.test: there is no file validation; give a .csv, .tsv or .jsonl file, or null to split it off data.train\n"
    )
    assert capsys.readouterr().err == f"error: configs/sst2_bert.yaml:8: {problem}"
    assert not (tmp_path / "runs").exists()
    assert train.main(["--config", "configs/text_bert.yaml", "--print-config"]) == 0


@pytest.mark.needs("text")
def test_a_row_that_is_wrong_is_named_by_its_own_file(tmp_path, capsys):
    (tmp_path / "train.tsv").write_text("text\tlabel\na\tb\n\tc\n", encoding="utf-8")
    options = [f"data.train={tmp_path}/train.tsv", f"data.cache={tmp_path}/cache", f"run.root={tmp_path}/runs"]
    assert train.main(["--config", "configs/text_bert.yaml", *options]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/train.tsv:3: no text in column 'text'\n"


@pytest.mark.needs("text")
def test_pairs_are_read_by_the_saved_tokenizer_as_in_training(tmp_path):
    lines = ["a,b,label", *(f"great film {i},awful film {i},{i % 2}" for i in range(60))]
    (tmp_path / "pairs.csv").write_text("\n".join(lines), encoding="utf-8")
    columns = {"text_column": "a", "text_pair_column": "b", "cache": str(tmp_path / "cache")}
    datamodule = importlib.import_module("datamodules.text").Text(str(tmp_path / "pairs.csv"), **columns)
    datamodule.setup()
    datamodule.save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    batch = datamodule.splits()["train"][0][torch.tensor([0])]
    given = tokenizer("great film 0", "awful film 0", return_tensors="pt")
    assert len(given["input_ids"][0]) == len(batch["input_ids"][0])
    assert torch.equal(given["token_type_ids"], batch["token_type_ids"])
    assert given["token_type_ids"].sum() == 4


CHINESE = {"好评": "好 棒 妙 赞", "差评": "坏 差 烂 糟", "中评": "平 凡 常 般"}


@pytest.mark.needs("text")
@pytest.mark.slow
def test_a_small_chinese_file_trains_as_shipped_and_its_class_names_come_back(tmp_path):
    generator = random.Random(0)
    filler, rows = "这部电影的演员和音乐在那里我们看了一个故事", {}
    while len(rows) < 300:
        label = list(CHINESE)[len(rows) % 3]
        words = [*generator.choices(filler, k=generator.randint(3, 15)), generator.choice(CHINESE[label].split())]
        rows["".join(generator.sample(words, len(words)))] = label
    lines = ["评论\t类别", *(f"{text}\t{label}" for text, label in rows.items())]
    (tmp_path / "评论.tsv").write_text("\n".join(lines), encoding="utf-8")
    columns = ["data.text_column=评论", "data.target=类别", f"data.cache={tmp_path}/cache"]
    done = run(tmp_path / "runs", "--config", "configs/text_bert.yaml", f"data.train={tmp_path}/评论.tsv", *columns)
    assert figures(done)["test/accuracy"] > 0.8
    again = LitBERT.load_from_checkpoint(done / "checkpoints/best.ckpt", map_location="cpu")
    assert again.hparams["class_names"] == sorted(CHINESE)


def test_without_transformers_one_line_names_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(engine.config.cross_checks, "find_spec", lambda name: None)
    assert train.main(["--config", "configs/iris_bert.yaml", f"run.root={tmp_path}/runs"]) == 2
    message = "model.name: bert needs the package transformers; run: pip install -e '.[bert]' -c constraints.txt\n"
    assert capsys.readouterr().err == f"error: configs/iris_bert.yaml:10: {message}"
    assert not (tmp_path / "runs").exists()
    assert train.main(["--config", "configs/iris_bert.yaml", "--print-config"]) == 0


# --- a hub on this machine


def on_hub(url: str, tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [
        "train.py",
        "--config",
        "configs/sst2_bert.yaml",
        f"data.cache={tmp_path}/cache",
        f"run.root={tmp_path}/runs",
    ]
    short = ["trainer.max_steps=2", "trainer.precision=32-true", *overrides]
    return subprocess.run(
        [sys.executable, *command, *short], cwd=PROJECT, env=environment, capture_output=True, text=True
    )


def write_dataset(folder: Path) -> Path:
    """A data set as the hub keeps it: Parquet files with the names of the labels."""
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    for split, count in (("train", 200), ("validation", 30)):
        rows = {
            "sentence": [f"{'great' if i % 2 else 'awful'} film {i}" for i in range(count)],
            "label": [i % 2 for i in range(count)],
        }
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"data/{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.needs("text")
@pytest.mark.slow
def test_model_and_data_by_name_from_a_hub_and_then_from_the_cache(folder, tmp_path):
    data = write_dataset(tmp_path / "sst2")
    with hub.serve({"models/google-bert/bert-base-uncased": folder, "datasets/stanfordnlp/sst2": data}) as (
        url,
        requests,
    ):
        done = on_hub(url, tmp_path, "model.freeze_layers=1")
        assert done.returncode == 0, done.stderr
        assert any(one.startswith("GET /google-bert/bert-base-uncased/resolve/") for one in requests)
        assert not any("pytorch_model" in one or one.endswith(".py") for one in requests if one.startswith("GET"))
        pinned = on_hub(url, tmp_path, "model.revision=nosuch")
        assert pinned.returncode == 2
        for part in (
            "data.tokenizer: google-bert/bert-base-uncased is not a local folder and cannot be downloaded",
            "tree/nosuch",
        ):
            assert part in pinned.stderr
    (run_folder,) = (tmp_path / "runs/sst2_bert").iterdir()
    record = json.loads((run_folder / "environment.json").read_text(encoding="utf-8"))
    assert record["pretrained"] == hub.COMMIT
    assert "transformers" in record["packages"]
    checkpoint = torch.load(run_folder / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["class_names"] == ["negative", "positive"]
    again = on_hub(url, tmp_path)  # the hub is gone, what was fetched is there
    assert again.returncode == 0, again.stderr


@pytest.mark.needs("text")
@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_one_line_that_says_what_to_put_where(tmp_path):
    done = on_hub("http://127.0.0.1:9", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: configs/sst2_bert.yaml:6: data.dataset: stanfordnlp/sst2 (split train) cannot be "
    )
    assert done.stderr.count("\n") == 1
    done = on_hub(
        "http://127.0.0.1:9",
        tmp_path,
        "data.dataset=null",
        *text_options(tmp_path),
        "data.test=null",
        "data.text_column=text",
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    for part in (
        "the hub does not answer",
        "model.safetensors",
        "/google-bert/bert-base-uncased/tree/main",
        "model.pretrained=FOLDER",
    ):
        assert part in done.stderr


# --- the real thing


@pytest.mark.needs("text")
@pytest.mark.real_data
def test_sst2_with_a_pretrained_model_learns_in_a_few_steps(real_data, tmp_path):
    files = [f"data.{part}={real_data}/sst2/{name}.tsv" for part, name in (("train", "train"), ("test", "dev"))]
    options = [
        *files,
        "data.dataset=null",
        f"data.cache={tmp_path}/cache",
        f"model.pretrained={minilm()}",
        "optimizer.lr=0.0002",
    ]
    short = ["trainer.max_steps=120", "trainer.limit_train_batches=120", "optimizer.lr=0.0002"]
    done = run(tmp_path / "runs", "--config", "configs/sst2_bert.yaml", *options, *short)
    assert figures(done)["test/accuracy"] > 0.8
    assert curve(done, "train/padding_share")[0] < 0.1
