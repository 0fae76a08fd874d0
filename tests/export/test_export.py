"""`goat export`: a run becomes a LoRA that plain PEFT loads, and what that costs is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from goat_peft import recipes, records
from goat_peft.cli import main
from goat_peft.errors import UserError
from goat_peft.export import Exported, Wishes, export
from goat_peft.export.distillation import divergence
from goat_peft.training import train

TEXT = "the film is great fun love"

# What a serving engine does: PEFT, and no trace of this package.
PLAIN = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "goat_peft":
            raise ImportError("blocked")
sys.meta_path.insert(0, Block())
import json, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
base, adapter, text = sys.argv[1:]
set_seed(0)  # the tiny base comes without a pooler
bare = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
torch.nn.init.zeros_(bare.classifier.weight)
model = PeftModel.from_pretrained(bare, adapter).eval()
inputs = AutoTokenizer.from_pretrained(base)(text, return_tensors="pt")
with torch.no_grad():
    routed = model(**inputs).logits[0].tolist()
    merged = model.merge_and_unload()(**inputs).logits[0].tolist()
print(json.dumps({"logits": routed, "merged": merged, "type": str(model.__class__), "loaded": "goat_peft" in sys.modules}))
"""


@pytest.fixture(scope="module")
def run(classify_recipe: Callable[[Path], dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GOAT run that learned something."""
    plain = classify_recipe(tmp_path_factory.mktemp("run") / "tiny")
    plain["method"] = {"name": "goat", "r": 8, "num_experts": 4}
    plain["training"] |= {"epochs": 3, "save_steps": 0}
    return train(recipes.check(plain)).path


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(run, Wishes(rows=24, distill=3), output=tmp_path_factory.mktemp("export") / "lora")


@pytest.mark.slow  # a fresh process imports for seconds; the test after it loads in this one
def test_plain_peft_loads_it_where_this_package_is_not(
    run: Path, exported: Exported, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    arguments = [sys.executable, "-c", PLAIN, str(tiny_bert_dir), str(exported.path), TEXT]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    plain = json.loads(done.stdout.splitlines()[-1])
    assert plain["loaded"] is False
    torch.testing.assert_close(torch.tensor(plain["merged"]), torch.tensor(plain["logits"]), rtol=1e-4, atol=1e-5)

    set_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2)
    inputs = AutoTokenizer.from_pretrained(tiny_bert_dir)(TEXT, return_tensors="pt")
    with torch.no_grad():
        routed = PeftModel.from_pretrained(base, run / "adapter").eval()(**inputs).logits[0]
    # The head came along, so that the two agree about the text although that base's own head is zero.
    assert routed.argmax() == torch.tensor(plain["logits"]).argmax()
    assert (routed - torch.tensor(plain["logits"])).abs().max() < 0.5 * (routed[0] - routed[1]).abs()


def test_peft_loads_it_and_the_head_comes_along(run: Path, exported: Exported, tiny_bert_dir: Path) -> None:
    logits = []
    for adapter in (run / "adapter", exported.path):
        set_seed(0)
        base = AutoModelForSequenceClassification.from_pretrained(tiny_bert_dir, num_labels=2)
        torch.nn.init.zeros_(base.classifier.weight)
        inputs = AutoTokenizer.from_pretrained(tiny_bert_dir)(TEXT, return_tensors="pt")
        with torch.no_grad():
            logits.append(PeftModel.from_pretrained(base, adapter).eval()(**inputs).logits[0])
    routed, plain = logits
    assert (routed - plain).abs().max() < 0.5 * (routed[0] - routed[1]).abs()


def test_the_adapter_is_a_standard_lora_of_twice_the_rank(exported: Exported) -> None:
    config = records.read_json(exported.path / "adapter_config.json")
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 16, 16)
    assert "classifier" in config["modules_to_save"]
    assert exported.result["export_info"]["rank"] == exported.result["export_info"]["exact_rank"] == 16


def test_the_figures_are_those_of_the_models(run: Path, exported: Exported) -> None:
    found = exported.result["export_info"]
    models = found["models"]
    assert models.keys() == {"base", "routed", "exported", "distilled"}
    last = records.read_json(run / records.RESULT)["train_info"]["metrics"][-1]
    assert models["routed"]["metrics"]["accuracy"] == last["test accuracy"]
    assert found["agreement"]["routed"] == 1.0
    assert found["rows"]["fit"] + found["rows"]["held_back"] == 24
    gain = models["base"]["loss"] - models["routed"]["loss"]
    assert gain > 0
    kept = (models["base"]["loss"] - models["exported"]["loss"]) / gain
    assert found["kept"]["exported"]["loss"] == pytest.approx(kept)
    assert len(found["divergence"]) == 3


def test_one_expert_loses_nothing(classify_recipe: Callable[[Path], dict[str, object]], tmp_path: Path) -> None:
    """Without a choice there is nothing to approximate: the LoRA is the adapter."""
    plain = classify_recipe(tmp_path / "one")
    plain["method"] = {"name": "goat", "r": 2, "num_experts": 1, "top_k": 1}
    plain["training"] |= {"epochs": 1, "save_steps": 0}
    run = train(recipes.check(plain)).path
    done = export(run, Wishes(rows=10), output=tmp_path / "lora")
    models = done.result["export_info"]["models"]
    assert models["exported"]["loss"] == pytest.approx(models["routed"]["loss"], abs=1e-5)
    assert done.result["export_info"]["agreement"]["exported"] == 1.0


def test_what_cannot_work_is_said_in_a_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rank 17: .* have rank 16; give 1 to 16"):
        export(run, Wishes(rows=10, rank=17), output=tmp_path / "a")
    with pytest.raises(UserError, match="the models are scored on these rows"):
        export(run, Wishes(calibrate="test"), output=tmp_path / "a")
    with pytest.raises(UserError, match="is what is exported"):
        export(run, output=run / "adapter")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that are not an export's"):
        export(run, output=tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="no such folder"):
        export("./nowhere")


def test_an_adapter_comes_from_the_hub_by_its_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that the Hub's library would fetch holds the adapter alone; a recipe says what it is scored on."""
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(run / "adapter")

    monkeypatch.setattr("goat_peft.export.source.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    done = export("someone/routed", Wishes(rows=10), recipe=str(run / records.RECIPE))
    assert asked == [("someone/routed", ["adapter_config.json", "adapter_model.safetensors"])]
    assert done.path == Path("runs/routed-lora") and done.result["run_info"]["kind"] == "adapter"
    last = records.read_json(run / records.RESULT)["train_info"]["metrics"][-1]
    assert done.result["export_info"]["models"]["routed"]["metrics"]["accuracy"] == last["test accuracy"]


def test_another_methods_adapter_is_refused(classify: dict[str, object], tmp_path: Path) -> None:
    classify["training"] |= {"epochs": None, "max_steps": 1, "save_steps": 0}  # type: ignore[operator]
    run = train(recipes.check(classify)).path
    with pytest.raises(UserError, match="its adapter is LORA, which PEFT loads as it is"):
        export(run, output=tmp_path / "a")


def test_the_command_compresses_and_reports(
    run: Path, tmp_path: Path, reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "lora"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "export",
                str(run),
                "--calibrate",
                str(reviews),
                "--rows",
                "20",
                "--rank",
                "4",
                "--weights",
                "mean",
                "--output",
                str(folder),
            ]
        )
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "LoRA of rank 4" in shown and "routed" in shown and "% of the gain in loss" in shown
    assert records.read_json(folder / "adapter_config.json")["r"] == 4
    assert records.read_json(folder / records.EXPORT)["run_info"]["weighting"] == "mean"


def test_divergence_is_the_kl_of_counted_tokens() -> None:
    torch.manual_seed(0)
    found, wanted = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    labels = torch.full((2, 5), -100)
    labels[0, 2], labels[1, 4] = 3, 1  # predicted at positions 1 and 3
    p, q = wanted.softmax(-1), found.softmax(-1)
    expected = sum((p[row, at] * (p[row, at] / q[row, at]).log()).sum() for row, at in ((0, 1), (1, 3))) / 2
    torch.testing.assert_close(divergence(found, wanted, labels), expected)
    assert divergence(wanted, wanted, labels).item() == pytest.approx(0, abs=1e-6)
