"""Trackers get the training loss, what the experts did, and the figures of the final evaluation; offline."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from goat_peft import recipes
from goat_peft.errors import UserError
from goat_peft.training import trackers, train

WANTED = {
    "train/loss",
    "train/balance_loss",
    "train/expert_imbalance",
    "train/expert_imbalance_worst",
    "train/experts_idle",
    "eval/loss",
    "eval/accuracy",
    "test/accuracy",
    "test/f1",
}


@pytest.fixture
def data(classify: dict) -> dict[str, Any]:
    classify["training"] |= {"max_steps": 4, "epochs": None}
    classify["evaluation"] |= {"every_steps": 2}
    return classify | {"method": {"name": "goat"}}


def test_tensorboard_has_every_figure(data: dict) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data["training"] |= {"report_to": ["tensorboard"]}
    run = train(recipes.check(data))
    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= WANTED
    rows = [row for row in run.result["train_info"]["metrics"] if "balance_loss" in row]
    for name in ("balance_loss", "expert_imbalance", "experts_idle"):
        logged = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert logged == [(row["step"], pytest.approx(row[name], rel=1e-5)) for row in rows] and len(logged) == 4
    final = run.result["train_info"]["metrics"][-1]
    (accuracy,) = events.Scalars("test/accuracy")
    assert (accuracy.step, accuracy.value) == (4, pytest.approx(final["test accuracy"]))


def test_wandb_offline_has_every_figure_and_each_run_its_own(
    data: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    data["training"] |= {"report_to": ["wandb"]}
    final = train(recipes.check(data)).result["train_info"]["metrics"][-1]
    assert wandb.run is None
    data["training"] |= {"max_steps": 1}
    train(recipes.check(data | {"name": "second", "method": {"name": "lora"}}), overwrite=True)
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    rows = [history(file) for file in files]
    assert {name for row in rows[0] for name in row} >= WANTED
    assert {"train/loss", "test/accuracy"} <= {name for row in rows[1] for name in row}
    (accuracy,) = [row["test/accuracy"] for row in rows[0] if "test/accuracy" in row]
    assert accuracy == pytest.approx(final["test accuracy"])


def history(file: Path) -> list[dict[str, Any]]:
    """Rows that an offline run of wandb has logged."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in chunks(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def chunks(text: bytes) -> list[bytes]:
    """Records of a file in LevelDB's log format, as wandb writes it: 7 bytes of head, blocks of 32 KiB, parts with crc, size and kind."""
    found, pending, place = [], b"", 7
    while place + 7 <= len(text):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", text, place + 4)
        pending += text[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(pending)
            pending = b""
    return found


def test_trackio_has_every_figure(data: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackio = pytest.importorskip("trackio", reason="trackio is not installed: pip install trackio")
    logged: list[dict[str, Any]] = []
    finished: list[int] = []
    log, finish = trackio.log, trackio.finish
    monkeypatch.setattr(trackio, "log", lambda row: (logged.append(row), log(row)))
    monkeypatch.setattr(trackio, "finish", lambda: (finished.append(len(logged)), finish()))
    data["training"] |= {"report_to": ["trackio"]}
    train(recipes.check(data))
    assert {name for row in logged for name in row} >= WANTED
    assert finished[-1] == len(logged)


def test_a_tracker_that_is_not_installed_is_one_line(data: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trackers.AVAILABLE, "wandb", lambda: False)
    data["training"] |= {"report_to": ["wandb"]}
    with pytest.raises(
        UserError, match=r"^training.report_to=wandb: .* is not installed; pip install wandb, or leave it"
    ):
        train(recipes.check(data))


def test_an_unknown_tracker_is_refused(data: dict) -> None:
    data["training"] |= {"report_to": ["clearml"]}
    with pytest.raises(UserError, match="training.report_to.*wandb"):
        recipes.check(data)
