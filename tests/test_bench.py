"""`goat bench`: every method measured in one run, rows with their circumstances, and the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from transformers import LlamaConfig

from goat_peft.bench import quantised
from goat_peft.bench.workloads import SHAPES, apply_method, build_base
from goat_peft.cli import main
from goat_peft.reporting import bench as picture_of

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


def test_a_training_step_of_each_method_in_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    options = [
        "--shape",
        "minilm-l6",
        "--layers",
        "1",
        "--sizes",
        "2x8",
        "--ranks",
        "8",
        "--repeats",
        "2",
        "--warmup",
        "1",
    ]
    for _ in range(2):  # rows are added, never replaced
        assert run("bench", "train-step", *options, "--device", "cpu", "--results", str(file)) == 0
    rows = json.loads(file.read_text())
    assert [row["method"] for row in rows] == ["floor", "lora", "loop", "goat", "goat-soft"] * 2
    floor = rows[0]
    for row in rows[:5]:
        assert row["over_floor"] == pytest.approx(row["step_ms"] / floor["step_ms"])
        assert row["waited_ms"] > 0 and row["r"] == 8 and row["layers"] == 1
        assert row["versions"]["torch"] and row["date"] and row["command"] and row["device"]
    assert "x lora" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("question", "options", "said"),
    [
        ("train-step", "--methods gaot,floor", "--methods: 'gaot' is not known; did you mean goat?"),
        (
            "train-step",
            "--methods floor,",
            "--methods: '' is not known; choose from floor, goat, goat-soft, loop, lora",
        ),
        ("train-step", "--sizes 4", "--sizes: '4': must be batch x length in tokens, such as 4x1024"),
        ("train-step", "--sizes 4x0", "--sizes: '4x0': must be batch x length"),
        ("train-step", "--shape minilm-l6 --sizes 1x600", "--sizes: 1x600: minilm-l6 takes at most 512 tokens"),
        ("train-step", "--graph --device cpu", "--graph: a CUDA graph needs --device cuda; leave --graph out"),
        ("train-step", "--device tpu", "--device: 'tpu' is not known; did you mean cpu?"),
        ("train-step", "--repeats 0", "--repeats: '0': must be a whole number of at least 1"),
        ("train-step", "--layers two", "--layers: 'two': must be a whole number of at least 1"),
        ("train-step", "--ranks 32,30", "--ranks: 30: must be a multiple of the 8 experts, for example 32"),
        ("train-step", "--top-k 9", "--top-k: 9: must be at most the 8 experts"),
        (
            "train-step",
            "--methods loop --dropout 0.05",
            "--dropout: 0.05: the loop over experts has no dropout; leave loop out",
        ),
        ("train-step", "--dropout 1 --methods goat", "--dropout: '1': must be a probability from 0 to below 1"),
        ("decode", "--rank 30", "--rank: 30: must be a multiple of the 8 experts, for example 32"),
        ("decode", "--batches 0", "--batches: '0': must be a whole number of at least 1"),
        ("init", "--experts 1", "--experts: '1': must be a whole number of at least 2"),
        ("quantised", "--kinds int4", "--kinds: 'int4' is not known; did you mean int8"),
        ("quantised", "--kinds torchao-int8", "--kinds: 'torchao-int8' needs torchao; pip install"),
        ("quantised", "--methods loop --dropout 0.1", "--dropout: 0.1: the loop over experts has no dropout"),
        ("cpu-step", "--rounds 1", "--rounds: '1': must be a whole number of at least 2"),
        ("cpu-step", "--shapes nope", "--shapes: 'nope' is not known; choose from minilm-l6, smollm2-135m"),
        ("cpu-step", "--ranks 30", "--ranks: 30: must be a multiple of the 8 experts"),
    ],
)
def test_an_option_that_cannot_work_is_one_line_before_anything_is_measured(
    question: str,
    options: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda name: None if name == "torchao" else name)
    file = tmp_path / "rows.json"
    assert run("bench", question, *options.split(), "--results", str(file)) == 2
    captured = capsys.readouterr()
    assert f"goat bench {question}: error: argument {said}" in captured.err.splitlines()[-1]
    assert captured.out == "" and not file.exists()


@pytest.mark.parametrize("text", ["{}", "[1]", "[{", ""])
@pytest.mark.parametrize("question", ["train-step", "decode", "init", "memory", "cpu-step"])
def test_rows_are_not_measured_for_a_file_that_takes_none(
    question: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.json"
    file.write_text(text)
    assert run("bench", question, "--results", str(file)) == 2
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert f"argument --results: '{file}' takes no rows" in last and "give a JSON list of rows, or a name" in last
    assert captured.out == "" and file.read_text() == text


def test_rows_are_not_measured_for_a_folder_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run("bench", "train-step", "--results", str(tmp_path / "file" / "rows.json")) == 2
    assert f"{tmp_path / 'file'} is no folder that can be written to" in capsys.readouterr().err.splitlines()[-1]


def test_a_rank_counts_only_for_methods_with_experts(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    options = "--shape minilm-l6 --layers 1 --sizes 1x4 --ranks 3 --repeats 1 --warmup 0 --methods lora --device cpu"
    assert run("bench", "train-step", *options.split(), "--results", str(file)) == 0
    assert [(row["method"], row["r"]) for row in json.loads(file.read_text())] == [("lora", 3)]


def test_a_method_that_is_none_is_never_built() -> None:
    base = build_base("minilm-l6", 1, torch.float32, "meta")
    with pytest.raises(ValueError, match="method='gaot': not known; did you mean goat?"):
        apply_method("gaot", base, 8, 8, 2, 0.0)


def test_a_loop_is_not_captured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = ["--graph", "--device", "cuda", "--methods", "floor,loop"]
    assert run("bench", "train-step", *options, "--results", str(tmp_path / "rows.json")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "argument --graph: a loop over experts cannot be captured; leave loop out of --methods" in last


def test_memory_without_a_gpu_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("bench", "memory", "--results", str(tmp_path / "rows.json")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "peak memory is counted on CUDA devices alone" in last and "goat plan predicts it" in last


def test_what_an_svd_of_every_weight_takes_is_told_to_be_an_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = LlamaConfig(hidden_size=64, intermediate_size=128, num_attention_heads=4, vocab_size=97)
    monkeypatch.setitem(SHAPES, "smollm2-135m", small)
    file = tmp_path / "rows.json"
    options = "--shape smollm2-135m --layers 2 --rank 8 --device cpu"
    assert run("bench", "init", *options.split(), "--results", str(file)) == 0
    rows = json.loads(file.read_text())
    assert [row["method"] for row in rows if row.get("estimated")] == ["svd"]
    assert len(rows) == 5 and all(row["projections"] == 14 and row["seconds"] > 0 for row in rows)
    told = [line for line in capsys.readouterr().out.splitlines() if "estimated from one weight" in line]
    assert len(told) == 1 and " svd " in told[0]


@pytest.mark.slow  # its parts run in tests/ops
def test_decoding(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    options = ["--shape", "smollm2-135m", "--layers", "1", "--batches", "2", "--methods", "lora,goat"]
    assert run("bench", "decode", *options, "--device", "cpu", "--results", str(file)) == 0
    assert [row["method"] for row in json.loads(file.read_text())] == ["lora", "goat"]


def test_the_picture_comes_from_the_committed_rows(tmp_path: Path) -> None:
    picture = tmp_path / "speed.png"
    assert run("bench", "plot", "--results", str(RESULTS), "--output", str(picture)) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_rows_says_what_to_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "plot", "--results", str(tmp_path)) == 2
    assert "has no train_step.json; measure first" in capsys.readouterr().err


def bars(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[float]]]:
    """Heights by method in the first two parts of the picture, and the lines' points in the third."""
    drawn: list[Figure] = []
    monkeypatch.setattr(picture_of, "save", lambda figure, path: drawn.append(figure))
    picture_of.draw(folder, folder / "speed.png")
    left, middle, right = drawn[0].axes
    parts: list[dict[str, list[float]]] = [
        {str(group.get_label()): [bar.get_height() for bar in group] for group in axes.containers}  # type: ignore[attr-defined]
        for axes in (left, middle)
    ]
    return [*parts, {str(line.get_label()): list(line.get_ydata()) for line in right.lines}]  # type: ignore[arg-type]


def test_the_picture_takes_the_latest_whole_run_of_its_workloads_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ("train_step", "decode")}

    def write() -> None:
        for name, rows in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(rows))

    def add(name: str, method: str, value: float, date: str, **changes: Any) -> None:
        about = {"shape": "llama-2-7b", "layers": 16, "r": 32, "num_experts": 8, "top_k": 2, "cuda_graph": False}
        own = {"train_step": {"batch": 4, "length": 1024, "dropout": 0.0, "compiled": False}}
        about |= own.get(name, {"batch": 1, "autocast": False}) | {"device": "NVIDIA H100", "peak_gib": 1.0}
        ratios = {"over_lora": value, "over_floor": value}
        files[name].append(about | {"method": method, "date": date, "command": "goat bench"} | ratios | changes)

    write()
    before = bars(tmp_path, monkeypatch)
    for method in ("lora", "goat"):  # later runs of anything else change nothing
        for changes in ({"shape": "llama-3-8b"}, {"layers": 4}, {"r": 64}, {"autocast": True}, {"top_k": 4}):
            add("decode", method, 9.0, "2030-01-01", **changes)
        add("decode", method, 9.0, "2030-01-01", device="x86_64, 2 threads", peak_gib=None)
        add("train_step", method, 9.0, "2030-01-01", device="x86_64, 2 threads", peak_gib=None)
        add("train_step", method, 9.0, "2030-01-01", dropout=0.05)
    add("train_step", "goat", 9.0, "2030-01-02", cuda_graph=True, over_lora=None)  # beside no LoRA
    write()
    assert bars(tmp_path, monkeypatch) == before
    for name in files:
        add(name, "lora", 1.0, "2031-01-01")
        add(name, "goat", 0.5, "2031-01-01")
        for method in ("lora", "goat"):  # an older run further down: a file put together has any order
            add(name, method, 9.0, "2019-01-01")
    write()
    after = bars(tmp_path, monkeypatch)
    assert after[0]["GOAT"] == [0.5, *before[0]["GOAT"][1:]] and after[1]["GOAT"] == [0.5, *before[1]["GOAT"][1:]]
    # The new eager run had no frozen model; the older one's bar does not stand beside it.
    assert after[0]["frozen model"] == [0.0, *before[0]["frozen model"][1:]] and before[0]["frozen model"][0] > 0
    assert after[2] == before[2]


@pytest.mark.parametrize("name", ["train_step.json", "decode.json"])
@pytest.mark.parametrize(
    ("text", "said"),
    [("[]", "has no row of GOAT"), ("{", "cannot be read"), ("{}", "not a list"), ("[1]", "not a list")],
)
def test_a_folder_without_rows_to_draw_is_one_line(
    name: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in ("train_step.json", "decode.json"):
        (tmp_path / other).write_text((RESULTS / other).read_text())
    (tmp_path / name).write_text(text)
    assert run("bench", "plot", "--results", str(tmp_path), "--output", str(tmp_path / "speed.png")) == 2
    error = capsys.readouterr().err
    assert f"results={tmp_path}: {name} " in error and said in error and "measure first" in error
    assert len(error.splitlines()) == 1 and not (tmp_path / "speed.png").exists()


def test_what_cannot_be_measured_is_left_out_unless_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    options = "--shape minilm-l6 --layers 1 --sizes 1x8 --ranks 8 --repeats 1 --warmup 1 --device cpu --dropout 0.1"
    assert run("bench", "train-step", *options.split(), "--results", str(file)) == 0
    assert [row["method"] for row in json.loads(file.read_text())] == ["floor", "lora", "goat", "goat-soft"]
