"""The model card of a run or an export, through the Hub's own card classes."""

from __future__ import annotations

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..reporting.tables import percent
from .facts import AUTO, Facts, Figure

# Figures from -1 to 1, which are no per cent.
CORRELATIONS = ("matthews", "pearson", "spearman")


def write_card(facts: Facts, repo_id: str, licence: str | None, pictures: list[str]) -> ModelCard:
    """Build the card; `pictures` lie beside it."""
    data = ModelCardData(
        base_model=facts.base,
        base_model_relation="finetune" if facts.kind == "model" else "adapter",
        library_name="transformers" if facts.kind == "model" else "peft",
        pipeline_tag=None if facts.pipeline == "other" else facts.pipeline,
        license=licence,
        datasets=facts.datasets or None,
        tags=["lora"] if facts.kind == "lora" else ["goat", "mixture-of-lora-experts", "goat-peft"],
        model_name=repo_id.rpartition("/")[2],
        eval_results=[_result(facts, figure) for figure in facts.figures],
        ignore_metadata_errors=False,
    )
    body = [
        f"# {repo_id.rpartition('/')[2]}",
        _opening(facts),
        _scores(facts),
        _loading(facts, repo_id),
        _list("Data", facts.data),
        _list("Settings", facts.settings),
        "\n".join(f"![{name.rpartition('.')[0]}]({name})" for name in pictures),
        _licence(facts, licence),
        f"Made with {', '.join(f'{name} {version}' for name, version in facts.versions.items())}.",
    ]
    text = "\n\n".join(part for part in body if part)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n")
    return card


def _result(facts: Facts, figure: Figure) -> EvalResult:
    name = figure.test or facts.name
    return EvalResult(
        task_type=facts.pipeline,
        dataset_type=facts.datasets[0] if len(facts.datasets) == 1 else name,
        dataset_name=name,
        metric_type=figure.metric,
        metric_name=figure.metric.replace("_", " "),
        metric_value=round(figure.value, 4),
    )


def _opening(facts: Facts) -> str:
    base = f"[{facts.base}](https://huggingface.co/{facts.base})"
    what = {
        "adapter": f"An adapter for {base}",
        "model": f"{base}, fine-tuned",
        "lora": f"A plain LoRA for {base} that stands in for a mixture of LoRA experts",
    }[facts.kind]
    return f"{what}: {facts.description}." if facts.description else f"{what}."


def _scores(facts: Facts) -> str:
    if facts.models:
        return _models(facts)
    if not facts.figures:
        return ""
    before = bool(facts.untrained)
    header = ["test", "metric", *(["untrained"] if before else []), "trained", "95% interval", "rows"]
    lines = [header, ["---"] * len(header)]
    for figure in facts.figures:
        start = facts.untrained.get((figure.test, figure.metric))
        spread = "" if figure.low is None or figure.high is None else f"{percent(figure.low)} to {percent(figure.high)}"
        lines.append(
            [
                figure.test or facts.name,
                figure.metric.replace("_", " "),
                *([_shown(figure.metric, start)] if before else []),
                _shown(figure.metric, figure.value),
                spread,
                str(figure.rows or ""),
            ]
        )
    return "## Scores\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _models(facts: Facts) -> str:
    """The table of an export: what each model scores."""
    names = list(next(iter(facts.models.values()))["metrics"])
    lines = [["model", "loss", *(name.replace("_", " ") for name in names)], ["---"] * (2 + len(names))]
    for model, own in facts.models.items():
        lines.append([model, f"{own['loss']:.4f}", *(_shown(name, own["metrics"][name]) for name in names)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    share = facts.kept.get("distilled", facts.kept.get("exported", {})).get("score")
    said = "" if share is None else f"\n\nIt keeps {percent(share)} % of the routed adapter's gain in the score."
    return f"## Scores\n\n{table}{said}"


def _loading(facts: Facts, repo_id: str) -> str:
    auto = AUTO.get(facts.pipeline, "AutoModel")
    names = dict(enumerate(facts.labels or []))
    head = f", id2label={names}, label2id={ ({name: index for index, name in names.items()}) }" if names else ""
    if facts.kind == "model":
        code = f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("{repo_id}")'
    else:
        first = "" if facts.kind == "lora" else "import goat_peft  # makes PEFT know the method\n"
        code = (
            f"{first}from peft import PeftModel\nfrom transformers import {auto}\n\n"
            f'base = {auto}.from_pretrained("{facts.base}"{head})\nmodel = PeftModel.from_pretrained(base, "{repo_id}")'
        )
    return f"## Load it\n\n```python\n{code}\n```"


def _list(title: str, lines: dict[str, str]) -> str:
    return "" if not lines else f"## {title}\n\n" + "\n".join(f"- {name}: {value}" for name, value in lines.items())


def _licence(facts: Facts, licence: str | None) -> str:
    own = f"These weights: {licence}. " if licence else ""
    return f"## Licence\n\n{own}The terms of the base model, [{facts.base}](https://huggingface.co/{facts.base}), and of the data apply."


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if metric.endswith(CORRELATIONS) else percent(value)
