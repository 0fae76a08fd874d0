"""Tiny models and data that need neither network nor GPU."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # tests run side by side, in processes of their own that inherit this
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = (
        "1"  # Triton looks once, when it is imported: without a GPU kernels run in its interpreter
    )

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = [
    "good",
    "bad",
    "great",
    "awful",
    "film",
    "plot",
    "actor",
    "story",
    "fun",
    "dull",
    "love",
    "hate",
    "the",
    "a",
    "an",
    "is",
    "was",
    "very",
    "not",
    "and",
    "so",
    "it",
    "this",
    "that",
    "one",
    "question",
    ":",
    "answer",
    "the",
    "correct",
    "is",
    "answer1",
    "answer2",
    "true",
    "false",
    "###",
    "Response",
    ".",
    ",",
    "?",
    "!",
]


def _tokenizer(folder: Path, encoder: bool) -> int:
    """Save a word-level tokenizer into `folder`; return its vocabulary size."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(special + WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if encoder:
        marks = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
        inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    roles = {"cls_token": "[CLS]", "sep_token": "[SEP]"} if encoder else {"eos_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", **roles)
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


@pytest.fixture(autouse=True)
def _light_collections() -> Iterator[None]:
    """Keep the libraries' objects out of the full collections that accelerate asks for: a second of each run otherwise."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT of width 32 with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    size = _tokenizer(folder, encoder=True)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of width 32 with its tokenizer; `[SEP]` ends a text."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    size = _tokenizer(folder, encoder=False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 short reviews of 16 films whose words decide the label."""
    rows = []
    for index in range(64):
        positive = index % 2 == 0
        words = ["the film is", "great fun love" if positive else "awful dull hate", "and so it was"][: 2 + index % 2]
        rows.append({"text": " ".join(words), "label": "fresh" if positive else "rotten", "film": index // 4})
    return write_rows(tmp_path_factory.mktemp("data") / "reviews.jsonl", rows)


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 questions whose answer is a word of theirs."""
    rows = []
    for index in range(32):
        answer = "true" if index % 2 else "false"
        rows.append(
            {
                "instruction": f"question : is the film {'good' if index % 2 else 'bad'} ?" + " very" * (index % 5),
                "output": f"the correct answer is {answer}",
                "answer": answer,
            }
        )
    return write_rows(tmp_path_factory.mktemp("data") / "questions.jsonl", rows)


@pytest.fixture(scope="session")
def classify_recipe(tiny_bert_dir: Path, reviews: Path) -> Callable[[Path], dict[str, object]]:
    """Builds a recipe, as plain data, that trains the tiny encoder for a few seconds into the given folder."""

    def build(output: Path) -> dict[str, object]:
        return {
            "name": "tiny",
            "model": {"name": str(tiny_bert_dir), "dtype": "float32"},
            "task": {
                "type": "text_classification",
                "data": {"train": {"path": str(reviews)}, "cut": {"validation": 8, "test": 16, "group_by": "film"}},
                "text": "text",
                "label": "label",
                "labels": ["rotten", "fresh"],
                "max_length": 32,
            },
            "method": {"name": "lora", "r": 8},
            "training": {"learning_rate": 0.01, "epochs": 2, "batch_size": 8, "logging_steps": 1},
            "evaluation": {"batch_size": 16},
            "output_dir": str(output),
        }

    return build


@pytest.fixture
def classify(classify_recipe: Callable[[Path], dict[str, object]], tmp_path: Path) -> dict[str, object]:
    """Such a recipe of the test's own."""
    return classify_recipe(tmp_path / "run")


@pytest.fixture
def generate(tiny_llama_dir: Path, questions: Path, tmp_path: Path) -> dict[str, object]:
    """A recipe, as plain data, that trains the tiny language model for a few seconds."""
    return {
        "name": "tiny-generation",
        "model": {"name": str(tiny_llama_dir), "dtype": "float32"},
        "task": {
            "type": "generation",
            "data": {"train": {"path": str(questions)}, "test": {"path": str(questions)}},
            "prompt": "{instruction} ### Response : ",
            "response": "{output}",
            "answer": "{answer}",
            "extract": "true|false",
            "max_length": 48,
            "max_new_tokens": 8,
        },
        "method": {"name": "lora", "r": 8},
        "training": {"learning_rate": 0.02, "max_steps": 20, "batch_size": 8, "logging_steps": 1},
        "evaluation": {"batch_size": 8},
        "output_dir": str(tmp_path / "run"),
    }


@pytest.fixture
def lively_llama(tiny_llama_dir: Path, tmp_path: Path) -> Callable[[int], Path]:
    """Writes a tiny language model, drawn from a seed, whose texts and likelihoods depend on its prompts."""

    def write(seed: int) -> Path:
        model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.normal_(std=0.5)
        model.save_pretrained(tmp_path / "base")
        AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return write
