"""Two processes share an evaluation and find what one finds."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.state import AcceleratorState

from goat_peft import recipes, records
from goat_peft.tasks import generation, processes
from goat_peft.training import evaluate, train


def _one(rank: int, port: int, run: Path, output: Path, log: Path, overrides: list[str]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    AcceleratorState._reset_state()
    PartialState._reset_state()
    generate_texts = generation.generate_texts

    def watched(*args: Any, **settings: Any) -> None:
        (log / f"{rank}").write_text(" ".join(map(str, settings["indices"])))
        generate_texts(*args, **settings)

    generation.generate_texts = watched
    found = evaluate(run, output=output, overrides=overrides)
    (log / f"{rank}.metrics").write_text(str(found.result["eval_info"]["metrics"]))
    processes.close()


def launch(run: Path, output: Path, log: Path, overrides: list[str]) -> None:
    """Evaluate in two processes that talk through gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log.mkdir(exist_ok=True)
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_one, args=(rank, port, run, output, log, overrides)) for rank in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(timeout=120)
    alive = [one for one in both if one.is_alive()]
    for one in alive:
        one.kill()
    assert not alive and [one.exitcode for one in both] == [0, 0]


@pytest.mark.parametrize("sampled", [False, True])
def test_two_processes_find_what_one_finds(generate: dict, tmp_path: Path, sampled: bool) -> None:
    settings = ["task.sampling={temperature: 2.0}"] if sampled else []
    run = train(recipes.check(generate | {"training": generate["training"] | {"max_steps": 2}}))
    alone = evaluate(run.path, output=tmp_path / "alone", overrides=settings)
    launch(run.path, tmp_path / "shared", tmp_path / "log", settings)
    shared = records.read_json(tmp_path / "shared" / records.EVALUATION)
    assert shared["eval_info"] == alone.result["eval_info"] and shared["run_info"]["processes"] == 2
    assert (tmp_path / "shared" / records.PREDICTIONS).read_text() == (alone.path / records.PREDICTIONS).read_text()
    parts = [(tmp_path / "log" / str(rank)).read_text().split() for rank in range(2)]
    assert sorted(map(int, parts[0] + parts[1])) == list(range(32)) and len(parts[0]) == len(parts[1]) == 16
    assert {(tmp_path / "log" / f"{rank}.metrics").read_text() for rank in range(2)} == {
        str(alone.result["eval_info"]["metrics"])
    }
    assert not (tmp_path / "shared" / records.SCORING).exists()
