"""`goat push` against a stand-in for the Hub: the files, the card, and what must not leave the machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_hub import FakeHub, fake_hub
from huggingface_hub import HfApi, ModelCard, constants
from peft import PeftConfig
from safetensors.torch import load

from goat_peft import recipes, records
from goat_peft.cli import main
from goat_peft.errors import UserError
from goat_peft.export import Wishes, export
from goat_peft.publish import push, stage
from goat_peft.training import train

TOKEN = "hf_" + "only-in-memory"
BASE = "someone/tiny-bert"


@pytest.fixture(scope="module")
def run(classify_recipe: Callable[[Path], dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny finished GOAT run, untrained score included."""
    plain = classify_recipe(tmp_path_factory.mktemp("run") / "tiny")
    plain["method"] = {"name": "goat", "r": 8, "num_experts": 4}
    plain["training"] |= {"epochs": 1, "save_steps": 0}
    plain["evaluation"] |= {"untrained": True}
    return train(recipes.check(plain)).path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in takes plain uploads
    with fake_hub() as running:
        yield running


def pushed(run: Path, hub: FakeHub, **wishes: Any) -> None:
    push(run, "me/tiny", base=BASE, api=HfApi(endpoint=hub.url, token=TOKEN), **wishes)


def test_weights_config_card_and_pictures_arrive_and_nothing_else(run: Path, hub: FakeHub) -> None:
    pushed(run, hub, licence="apache-2.0")
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "curve.png", "experts.png"}
    assert hub.files.keys() == names
    assert hub.files["adapter_model.safetensors"] == (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert any("goat_A" in name for name in load(hub.files["adapter_model.safetensors"]))
    assert len(hub.commits) == 1
    assert hub.repos["me/tiny"].get("visibility") != "private"


def test_no_path_of_this_machine_and_no_token_is_in_any_file(run: Path, hub: FakeHub) -> None:
    pushed(run, hub)
    assert hub.tokens == {f"Bearer {TOKEN}"}
    told = b"".join(hub.files.values())
    assert TOKEN.encode() not in told
    texts = b"".join(content for name, content in hub.files.items() if name.endswith((".md", ".json")))
    assert b"/tmp" not in texts and str(run.parent).encode() not in texts
    assert not [path for path in run.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_the_uploaded_config_names_the_base_on_the_hub(run: Path, hub: FakeHub, tmp_path: Path) -> None:
    pushed(run, hub)
    (tmp_path / "adapter_config.json").write_bytes(hub.files["adapter_config.json"])
    config = PeftConfig.from_pretrained(tmp_path)
    assert config.base_model_name_or_path == BASE
    assert config.peft_type == "GOAT"


def test_private_and_logs_are_only_as_asked(run: Path, hub: FakeHub) -> None:
    pushed(run, hub, private=True, logs=True)
    assert hub.repos["me/tiny"]["visibility"] == "private"
    assert {records.RECIPE, records.RESULT, records.EXPERT_USAGE} <= hub.files.keys()
    pushed(run, hub)  # the repository is there already: another commit to it
    assert len(hub.commits) == 2


@pytest.mark.parametrize(
    ("router", "said"),
    [("softmax", "4, all of them, weighed, for each token"), ("top_p", "the router top_p lets through for each token")],
)
def test_the_card_says_how_many_experts_a_token_gets(run: Path, tmp_path: Path, router: str, said: str) -> None:
    own = Path(shutil.copytree(run, tmp_path / "run"))
    result = records.read_json(own / records.RESULT)
    result["run_info"]["train_config"]["method"]["router"] = router
    records.write_json(own / records.RESULT, result)
    text = (stage(own, "me/tiny", tmp_path / "upload", BASE, "apache-2.0").path / "README.md").read_text(
        encoding="utf-8"
    )
    assert said in text and "2 of them" not in text


def test_the_card_holds_what_the_run_measured(run: Path, tmp_path: Path) -> None:
    staged = stage(run, "me/tiny", tmp_path / "upload", BASE, "apache-2.0")
    card = ModelCard.load(staged.path / "README.md")
    data = card.data
    assert (data.base_model, data.library_name, data.license) == (BASE, "peft", "apache-2.0")
    assert data.pipeline_tag == "text-classification"
    last = records.read_json(run / records.RESULT)["train_info"]["metrics"][-1]
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found.keys() == {"accuracy", "f1", "matthews"}
    assert found["accuracy"] == pytest.approx(last["test accuracy"], abs=1e-4)

    from scipy.stats import binomtest

    right, rows = round(last["test accuracy"] * 16), 16
    low, high = binomtest(right, rows).proportion_ci(method="wilson")
    assert f"| {100 * last['test accuracy']:.1f} | {100 * low:.1f} to {100 * high:.1f} | 16 |" in card.text
    assert "experts: 4, 2 of them for each token, total rank 8" in card.text
    assert "import goat_peft" in card.text and 'PeftModel.from_pretrained(base, "me/tiny")' in card.text
    assert """id2label={0: 'rotten', 1: 'fresh'}, label2id={'rotten': 0, 'fresh': 1}""" in card.text
    assert "reviews.jsonl" in card.text
    assert "![experts](experts.png)" in card.text
    yaml.safe_load(card.content.split("---")[1])


def test_an_export_is_pushed_as_a_plain_lora(run: Path, hub: FakeHub, tmp_path: Path) -> None:
    lora = export(run, Wishes(rows=10), output=tmp_path / "lora").path
    pushed(lora, hub)
    assert hub.files.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    card = hub.files["README.md"].decode()
    assert "import goat_peft" not in card and "| routed |" in card and "| exported |" in card
    assert b"/tmp" not in hub.files["README.md"] + hub.files["adapter_config.json"]


def test_a_local_base_needs_its_name_on_the_hub(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give its name on the hub, such as --base"):
        stage(run, "me/tiny", tmp_path / "a")
    with pytest.raises(UserError, match="is a place on this machine"):
        stage(run, "me/tiny", tmp_path / "b", base=str(tmp_path))


def test_an_unfinished_run_and_a_refusal_are_one_line(run: Path, hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no result.json"):
        stage(tmp_path, "me/tiny", tmp_path / "a", BASE)
    hub.refuses = True
    with pytest.raises(UserError, match="log in with `hf auth login`") as refused:
        pushed(run, hub)
    assert TOKEN not in str(refused.value) and "\n" not in str(refused.value)
    assert hub.files == {}


def test_the_command_stages_without_uploading(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "upload"
    with pytest.raises(SystemExit) as ended:
        main(["push", str(run), "me/tiny", "--base", BASE, "--stage", str(folder)])
    assert ended.value.code == 0
    assert "nothing was uploaded" in capsys.readouterr().out
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE
