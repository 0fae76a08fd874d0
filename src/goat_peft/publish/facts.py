"""What a card says, read from what a run or an export left behind; nothing that only means something on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from .. import records
from ..errors import UserError
from ..reporting.tables import interval

PIPELINES = {
    "text_classification": "text-classification",
    "image_classification": "image-classification",
    "generation": "text-generation",
    "chat": "text-generation",
    "code": "text-generation",
}
AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "text-generation": "AutoModelForCausalLM",
}


@dataclass(frozen=True)
class Figure:
    """A score on a test: `low` and `high` bound the 95% interval of a share of rows, None for figures that are none."""

    test: str
    metric: str
    value: float
    rows: int
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Facts:
    """What a card is written from.

    Attributes:
        name: of the run.
        kind: "adapter", "model" or "lora" (an export).
        base: hub name of the base model.
        pipeline: the Hub's name for what the model does.
        data: split -> where its rows came from.
        datasets: hub names among them.
        settings: what the run was trained with, line by line.
        figures: final scores; `untrained` the same of the base, by (test, metric).
        models: of an export: base, routed and exported model -> loss and scores.
        versions: package -> version.
        labels: names of a classification head's outputs, in their order, or None.
    """

    name: str
    kind: str
    base: str
    pipeline: str
    data: dict[str, str]
    datasets: list[str]
    settings: dict[str, str]
    figures: list[Figure]
    untrained: dict[tuple[str, str], float]
    versions: dict[str, str]
    description: str = ""
    models: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    labels: list[str] | None = None


def is_local(name: str) -> bool:
    """Whether a model's name means something on this machine alone."""
    return name.startswith(("package:", ".", "/", "~")) or Path(name).is_dir() or PurePath(name).is_absolute()


def run_facts(run: Path, base: str | None) -> Facts:
    """Read a finished run; `base` is the hub name of a base that the recipe names locally.

    Raises:
        UserError: the run is not finished, or its base has no name on the hub.
    """
    if not (run / records.RESULT).is_file():
        raise UserError(f"run={run}: has no {records.RESULT}; give the folder of a finished run or of an export")
    result = records.read_settings(run / records.RESULT, "run", "train again")
    config, meta = result["run_info"]["train_config"], result["meta_info"]
    task, last = config["task"], result["train_info"]["metrics"][-1]
    prefix = "test" if config["evaluation"]["split"] == "test" else "valid"
    tests = {test["name"]: test for test in config["evaluation"]["tests"]}
    return Facts(
        name=config["name"],
        kind="adapter" if (run / "adapter").is_dir() else "model",
        base=_base(config["model"]["name"], base),
        pipeline=PIPELINES.get(task["type"], "other"),
        data={split: _place(source) for split, source in meta["dataset_info"].items()},
        datasets=_hub_datasets(meta),
        settings=_settings(config, result["train_info"]),
        figures=_figures(run, last, prefix, task, tests),
        untrained=_untrained(result["train_info"]["metrics"], prefix, tests),
        versions=_versions(meta),
        description=config["description"],
        labels=[str(label) for label in task["labels"]] if task.get("labels") else None,
    )


def export_facts(folder: Path, base: str | None) -> Facts:
    """Read the folder that `goat export` wrote; raises `UserError` as `run_facts` does."""
    result = records.read_settings(folder / records.EXPORT, "export", "export again")
    info, found, meta = result["run_info"], result["export_info"], result["meta_info"]
    models = found["models"]
    best = models.get("distilled", models["exported"])
    rows = {name: best["samples"] for name in best["metrics"]}
    calibrated = f"{found['rows']['fit']} rows of {PurePath(info['calibrate']).name}, seed {info['seed']}"
    settings = {"rank": str(found["rank"]), "experts' weights": info["weighting"], "calibrated on": calibrated}
    if info["distill"]:
        settings["distilled"] = f"{info['distill']} steps"
    return Facts(
        name=f"{info['target']}-lora",
        kind="lora",
        base=_base(meta["model_info"]["name"], base),
        pipeline=PIPELINES.get(info["task"], "other"),
        labels=info["labels"],
        data={split: _place(source) for split, source in meta["dataset_info"].items()},
        datasets=_hub_datasets(meta),
        settings=settings,
        figures=[Figure("", name, value, rows[name]) for name, value in best["metrics"].items()],
        untrained={("", name): value for name, value in models["base"]["metrics"].items()},
        versions=_versions(meta),
        models=models,
        kept=found["kept"],
    )


def _base(named: str, given: str | None) -> str:
    if given is not None:
        if is_local(given):
            raise UserError(f"--base {given}: is a place on this machine; give the base model's name on the hub")
        return given
    if is_local(named):
        raise UserError(
            f"model.name={named}: others cannot load this base; give its name on the hub, such as --base sentence-transformers/all-MiniLM-L6-v2"
        )
    return named


def _place(source: dict[str, Any]) -> str:
    """Where rows came from, without a folder of this machine."""
    if source.get("dataset"):
        parts = [source["dataset"], source.get("config"), source.get("split")]
        return ", ".join(part for part in parts if part)
    paths = [source["path"]] if isinstance(source["path"], str) else source["path"] or []
    shown = [path if path.startswith(("package:", "https://")) else PurePath(path).name for path in paths]
    return ", ".join(shown)


def _hub_datasets(meta: dict[str, Any]) -> list[str]:
    return sorted({source["dataset"] for source in meta["dataset_info"].values() if source.get("dataset")})


def _settings(config: dict[str, Any], info: dict[str, Any]) -> dict[str, str]:
    method, training = config["method"], config["training"]
    shown = {"method": method["name"]}
    if "num_experts" in method:
        router = method.get("router", "topk")
        few = {"topk": f"{method['top_k']} of them", "softmax": "all of them, weighed,"}
        active = few.get(router, f"as many of them as the router {router} lets through")
        shown["experts"] = f"{method['num_experts']}, {active} for each token, total rank {method['r']}"
        shown["start"] = (
            f"init_weights={method['init_weights']}, init_router={method.get('init_router', 'kaiming')}, scaling={method['scaling']}, "
            f"eta={method['eta']}, rho={method['rho']}"
        )
        shown["balance loss"] = f"{method['router_aux_loss_coef']}"
    elif "r" in method:
        shown["rank"] = str(method["r"])
    shown["trained parameters"] = f"{info['num_trainable_params']:,} of {info['num_total_params']:,}"
    length = f"{training['max_steps']} steps" if training["max_steps"] else f"{training['epochs'] or 3.0:g} epochs"
    batch = training["batch_size"] * training["gradient_accumulation_steps"]
    shown["training"] = (
        f"{length}, batches of {batch}, learning rate {training['learning_rate']:g}, {training['schedule']}, seed {training['seed']}"
    )
    return shown


def _figures(run: Path, last: dict[str, Any], prefix: str, task: dict[str, Any], tests: dict[str, Any]) -> list[Figure]:
    """The final figures; one that equals the share of right rows gets that share's interval."""
    found = []
    for test in tests or {"": task}:
        lines = _predictions(run / records.TESTS / test if test else run)
        right, rows = sum(bool(line.get("correct")) for line in lines), len(lines)
        start = f"{prefix} {test} " if test else f"{prefix} "
        for key, value in last.items():
            if not key.startswith(start) or not isinstance(value, float):
                continue
            shared = rows > 0 and abs(value - right / rows) < 1e-9
            low, high = interval(right, rows) if shared else (None, None)
            found.append(Figure(test, key.removeprefix(start), value, rows, low, high))
    return found


def _untrained(rows: list[dict[str, Any]], prefix: str, tests: dict[str, Any]) -> dict[tuple[str, str], float]:
    start = f"untrained {prefix} "
    found: dict[tuple[str, str], float] = {}
    for key, value in rows[0].items():
        if not key.startswith(start) or not isinstance(value, float):
            continue
        name = key.removeprefix(start)
        test = next((test for test in tests if test and name.startswith(f"{test} ")), "")
        found[test, name.removeprefix(f"{test} ") if test else name] = value
    return found


def _predictions(folder: Path) -> list[dict[str, Any]]:
    file = folder / records.PREDICTIONS
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def _versions(meta: dict[str, Any]) -> dict[str, str]:
    found = meta["package_info"].items()
    return {name.removesuffix("-version"): said for name, said in found if said and name.endswith("-version")}
