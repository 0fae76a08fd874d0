"""What the page knows of a run, against the run's own files and a routing computed by hand."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from tiny_runs import nobody
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from goat_peft import records
from goat_peft.adapter import GoatLinear
from goat_peft.errors import UserError
from goat_peft.view import Wishes
from goat_peft.view import collect as collecting
from goat_peft.view.collect import collect, encode

TEXT = "the film is so very dull , not fun !"


@pytest.fixture(scope="module")
def data(goat_run: Path) -> dict:
    return collect(goat_run, [], Wishes(rows=3, texts=(TEXT,)), nobody)


def weights_of(text: dict, layers: int, experts: int = 4) -> list[np.ndarray]:
    """Each layer's weights (rows, experts), decoded."""
    flat = np.frombuffer(base64.b64decode(text["weights"]), np.uint8).reshape(-1, experts) / 255
    return np.split(flat, np.cumsum(text["rows"])[: layers - 1])


def test_routing_is_the_saved_adapter_s(data: dict, goat_run: Path, tiny_bert_dir: Path) -> None:
    """Softmax over each token's two largest logits, from the saved adapter and the layers' inputs."""
    set_seed(0)  # the checkpoint has no pooler and no head
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir)
    model = PeftModel.from_pretrained(base, goat_run / "adapter").eval()
    inputs: dict[str, torch.Tensor] = {}
    layers = {module.name: module for module in model.modules() if isinstance(module, GoatLinear)}
    for layer in layers.values():
        layer.register_forward_hook(lambda m, args, output: inputs.update({m.name: args[0]}))
    ids = AutoTokenizer.from_pretrained(tiny_bert_dir)(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        model(ids)
    text = data["texts"][0]
    assert [layer["name"] for layer in data["layers"]] == list(layers)
    assert text["rows"] == [ids.shape[1]] * 12 + [1]  # the pooler reads one vector
    for name, found in zip(layers, weights_of(text, len(layers)), strict=True):
        x = inputs[name].reshape(-1, inputs[name].shape[-1])
        logits = x @ layers[name].goat_router["default"].T
        for row, token in zip(found, logits, strict=True):
            best = token.topk(2)
            expected = torch.zeros(4).scatter(0, best.indices, best.values.softmax(0))
            np.testing.assert_allclose(row, expected.detach().numpy(), atol=0.5 / 255 + 1e-4)


def test_tokens_are_the_text_s(data: dict) -> None:
    assert data["texts"][0]["tokens"] == ["[CLS]", *TEXT.split(), "[SEP]"]
    assert data["texts"][0]["kinds"] == ["special", *[""] * len(TEXT.split()), "special"]
    assert [text["title"] for text in data["texts"]] == ["Own text 1", "test 1", "test 2", "test 3"]


def test_rows_carry_the_run_s_predictions(data: dict, goat_run: Path) -> None:
    lines = (goat_run / records.PREDICTIONS).read_text(encoding="utf-8").splitlines()
    for text, line in zip(data["texts"][1:], lines, strict=False):
        row = json.loads(line)
        mark = "right" if row["correct"] else "wrong"
        assert text["note"] == f"label {row['label']}, predicted {row['prediction']}: {mark}"


def test_rows_of_another_split_stand_in_where_the_evaluation_split_has_none(goat_run: Path) -> None:
    cut = "task.data.cut={validation: 8, group_by: film}"
    data = collect(goat_run, [cut], Wishes(rows=2, layers=("*pooler*",)), nobody)
    assert [text["title"] for text in data["texts"]] == ["validation 1", "validation 2"]
    assert [text["note"] for text in data["texts"]] == ["", ""]


def test_load_is_the_measured_usage_and_that_of_the_texts(data: dict, goat_run: Path) -> None:
    usage = records.read_json(goat_run / records.EXPERT_USAGE)
    assert [entry["title"] for entry in data["load"]] == ["training", "test split"]
    for entry, rows in zip(data["load"], (usage["train"], usage["test"]), strict=True):
        for shares, row, layer in zip(entry["shares"], rows, data["layers"], strict=True):
            assert layer["name"] == row["layer"]
            assert shares == pytest.approx(row["share"], rel=1e-3)
    counts = sum(np.stack([(w > 0).sum(0) for w in weights_of(text, 13)]) for text in data["texts"])
    assert data["texts_load"] == counts.tolist()


def test_curves_are_the_result_s(data: dict, goat_run: Path) -> None:
    rows = records.read_json(goat_run / records.RESULT)["train_info"]["metrics"]
    loss, balance = data["curves"][:2]
    assert [loss["title"], balance["title"]] == ["Loss", "Balance loss"]
    training, validation = loss["lines"]
    logged = [row for row in rows[:-1] if "train loss" in row]
    assert training["steps"] == [row["step"] for row in logged] and training["values"] == [
        row["train loss"] for row in logged
    ]
    assert validation["label"] == "validation"
    assert validation["values"] == [row["valid loss"] for row in rows if "valid loss" in row]
    assert balance["lines"][0]["values"] == [row["balance_loss"] for row in logged] and balance["even"] == 1.0


def test_patterns_choose_layers_and_long_texts_are_cut(goat_run: Path) -> None:
    wishes = Wishes(rows=1, texts=(TEXT,), tokens=5, layers=("*.query", "*.1.*.value"))
    data = collect(goat_run, [], wishes, nobody)
    assert [layer["short"] for layer in data["layers"]] == [
        "0.attention.query",
        "1.attention.query",
        "1.attention.value",
    ]
    assert len(data["texts"][0]["tokens"]) == 5 and data["texts"][0]["cut"] == len(TEXT.split()) - 3
    assert data["texts"][0]["rows"] == [5, 5, 5]
    long = collect(goat_run, [], Wishes(rows=0, texts=("film " * 90,), layers=("*pooler*",)), nobody)
    assert len(long["texts"][0]["tokens"]) == 64  # all that the model takes
    with pytest.raises(UserError, match=r"--layers=\*nothing\*: matches no adapted layer"):
        collect(goat_run, [], Wishes(layers=("*nothing*",)), nobody)


def test_texts_that_do_not_fit_are_left_out_and_counted(goat_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = collect(goat_run, [], Wishes(rows=4), nobody)
    sizes = [len(json.dumps(text)) for text in whole["texts"]]
    rest = len(json.dumps({k: v for k, v in whole.items() if k not in ("texts", "left_out", "texts_load")}))
    monkeypatch.setattr(collecting, "BUDGET", rest + sum(sizes[:2]) + 10)
    data = collect(goat_run, [], Wishes(rows=4), nobody)
    assert len(data["texts"]) == 2 and data["left_out"] == 2
    monkeypatch.setattr(collecting, "BUDGET", rest + 10)
    with pytest.raises(UserError, match="--tokens: the routing of test 1 in 13 layers takes more"):
        collect(goat_run, [], Wishes(rows=4), nobody)


def test_images_are_laid_out_as_patches(image_run: Path) -> None:
    """Sixteen patches after the class token, and the picture that the model sees: the middle of the image, in its own colours."""
    data = collect(image_run, [], Wishes(rows=2), nobody)
    for i, text in enumerate(data["texts"]):
        assert text["grid"] == {"rows": 4, "columns": 4, "first": 1}
        assert text["tokens"][:2] == ["token 1", "row 1, column 1"] and text["tokens"][-1] == "row 4, column 4"
        assert text["rows"] == [17] * 6 and text["note"] == ""
        assert all((w > 0).sum(1).tolist() == [2] * 17 for w in weights_of(text, 6))
        kind, _, content = text["picture"].partition(",")
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert kind == "data:image/jpeg;base64" and picture.size == (16, 16)
        seen = np.asarray(picture, int).mean((0, 1))
        np.testing.assert_allclose(seen, (200 if i % 2 else 30, 90, 20 * i), atol=4)
    with pytest.raises(UserError, match="this run's model reads images"):
        collect(image_run, [], Wishes(texts=("film",)), nobody)


def test_a_used_expert_is_never_rounded_away() -> None:
    assert list(encode(torch.tensor([0.0, 1e-6, 0.5, 1.0]))) == [0, 1, 128, 255]


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no recipe.yaml; give the folder"):
        collect(tmp_path, [], Wishes(), nobody)
