"""In search of the better GOAT: many short trainings on one GPU, each step captured in a CUDA graph, scored on validation rows alone.

    python results/development.py JOBS.json OUT.jsonl --models DIR --data DIR --workers 12

JOBS.json is a list of {task, variant, rate, seed}, taken in its order; `VARIANTS` says what a variant is, `TASKS` what a task is. Test splits are
never read. Rows are appended to OUT.jsonl. On a CPU the same steps run uncaptured (`--limit` for a few rows), which is how the script is tried out.
`results/LOG.md` says what came of it. The trainings are like those of the recipes, faster: batches padded to a
fixed length and drawn at random, bfloat16 autocast, no dropout on adapters, CIFAR-10's crops drawn on the GPU, fewer epochs, and a validation cut of its own.
`goat compare` measures what is kept.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gzip
import json
import math
import multiprocessing
import os
import re
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F

from goat_peft import GoatConfig
from goat_peft.adapter.layer import GoatLayer

KAIMING = 1 / math.sqrt(3)  # norm of a row of LoRA's A: n entries of variance 1 / (3 n)
SOFT = {"router": "softmax", "init_weights": "lora", "scaling": 16.0}

# name: (kind, settings of the config, start of A, factors of the learning rate by parameter name, factor of the router's start)
VARIANTS = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora"},
    "lora-gradient": {
        "kind": "goat",
        "config": {"num_experts": 1, "top_k": 1, "init_weights": "lora", "scaling": 2.0},
        "start": "gradient",
    },
    "lora-fast-B": {"kind": "lora", "factors": {"lora_B": 4}},
    "molora": {"kind": "goat", "config": {"init_weights": "lora", "scaling": 16.0, "router_aux_loss_coef": 0}},
    "hydralora": {"kind": "goat", "config": SOFT | {"shared_A": True, "router_aux_loss_coef": 0}},
    "paper": {"kind": "goat", "config": {}},
    "released": {"kind": "goat", "config": {"scaling": 16.0}},
    "paper-soft": {"kind": "goat", "config": {"router": "softmax"}},
    "released-soft": {"kind": "goat", "config": {"router": "softmax", "scaling": 16.0}},
    "released-soft-rho100": {"kind": "goat", "config": {"router": "softmax", "scaling": 16.0, "rho": 100.0}},
    "soft": {"kind": "goat", "config": SOFT},
    "soft-uniform": {"kind": "goat", "config": SOFT, "router": 0.0},
    "soft-fast-B": {"kind": "goat", "config": SOFT, "factors": {"goat_B": 4}},
    "soft-fast-router": {"kind": "goat", "config": SOFT, "factors": {"goat_router": 10}},
    "soft-segments": {"kind": "goat", "config": SOFT, "start": "segments"},
    "soft-chosen": {"kind": "goat", "config": SOFT, "start": "chosen"},
    "soft-gradient": {"kind": "goat", "config": SOFT, "start": "gradient"},
    "soft-gradient-uniform": {"kind": "goat", "config": SOFT, "start": "gradient", "router": 0.0},
    "soft-gradient-fast-B": {"kind": "goat", "config": SOFT, "start": "gradient", "factors": {"goat_B": 4}},
    "soft-gradient-fast-router": {"kind": "goat", "config": SOFT, "start": "gradient", "factors": {"goat_router": 10}},
    "soft-batches": {"kind": "goat", "config": SOFT, "start": "batches"},
    "soft-batches-fast-B": {"kind": "goat", "config": SOFT, "start": "batches", "factors": {"goat_B": 4}},
    "top2-gradient": {"kind": "goat", "config": {"init_weights": "lora", "scaling": 16.0}, "start": "gradient"},
    "two-gradient": {
        "kind": "goat",
        "config": SOFT | {"num_experts": 2, "top_k": 2, "scaling": 4.0},
        "start": "gradient",
    },
    "four-gradient": {"kind": "goat", "config": SOFT | {"num_experts": 4, "scaling": 8.0}, "start": "gradient"},
    "uniform-centred": {"kind": "goat", "config": SOFT, "start": "gradient", "router": 0.0, "centred": True},
    "uniform-mixed": {"kind": "goat", "config": SOFT, "start": "mixed", "router": 0.0},
    "uniform-mixed-centred": {"kind": "goat", "config": SOFT, "start": "mixed", "router": 0.0, "centred": True},
    "uniform-one": {"kind": "goat", "config": SOFT, "start": "one", "router": 0.0},
    "uniform-rho10": {"kind": "goat", "config": {"router": "softmax", "init_router": "zero", "scaling": 16.0}},
    "uniform-rho100": {
        "kind": "goat",
        "config": {"router": "softmax", "init_router": "zero", "scaling": 16.0, "rho": 100.0},
    },
    "soft-copies": {"kind": "goat", "config": SOFT | {"r": 64, "scaling": 16.0}, "start": "gradient-copies"},
}

TASKS = {  # recipe's model, rows, prompt, batch, epochs, metric
    "mrpc": {
        "model": "minilm",
        "data": "glue/mrpc/train.jsonl.gz",
        "text": "classify whether the texts mean the same: {sentence1} {sentence2} result:",
        "length": 112,
        "batch": 32,
        "epochs": 5,
        "metric": "accuracy",
    },
    "cola": {
        "model": "minilm",
        "data": "glue/cola/train.jsonl.gz",
        "text": "classify whether the text is grammatical: {sentence} result:",
        "length": 48,
        "batch": 32,
        "epochs": 3,
        "metric": "matthews",
    },
    "cola-short": {
        "model": "minilm",
        "data": "glue/cola/train.jsonl.gz",
        "text": "{sentence}",
        "length": 24,
        "batch": 32,
        "epochs": 3,
        "metric": "matthews",
    },
    "rte": {
        "model": "minilm",
        "data": "glue/rte/train.jsonl.gz",
        "text": "classify whether the first text implies the second: {sentence1} {sentence2} result:",
        "length": 128,
        "batch": 32,
        "epochs": 6,
        "metric": "accuracy",
    },
    "cifar10": {
        "model": "vit-s",
        "data": "image/cifar10/train.parquet",
        "batch": 64,
        "epochs": 2,
        "metric": "accuracy",
    },
    "mawps": {
        "model": "smollm2",
        "data": "math/mawps/train.jsonl.gz",
        "text": "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n{question}\n\n### Response:\n",
        "response": "#### {answer}",
        "length": 144,
        "batch": 16,
        "epochs": 3,
        "metric": "exact",
    },
    "arc": {
        "model": "smollm2",
        "data": "commonsense/arc-easy/train.jsonl.gz",
        "text": "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n",
        "response": "{output}",
        "length": 224,
        "batch": 16,
        "epochs": 2,
        "metric": "exact",
    },
}


class Rows:
    """Tensors of a task on the device: training rows and validation rows, cut by one fixed draw."""

    def __init__(self, name: str, models: Path, data: Path, limit: int | None) -> None:
        from transformers import AutoTokenizer

        task = TASKS[name]
        self.images = name == "cifar10"
        path = data / task["data"]
        if self.images:
            import io

            import numpy as np
            import pandas
            from PIL import Image

            table = pandas.read_parquet(path)
            if limit:
                table = table[:limit]
            cell = next(c for c in table.columns if isinstance(table[c].iloc[0], dict))
            label = next(c for c in table.columns if c != cell)
            pixels = np.stack([np.asarray(Image.open(io.BytesIO(v["bytes"])).convert("RGB")) for v in table[cell]])
            columns = {
                "pixel_values": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
                "labels": torch.tensor(table[label].to_numpy()),
            }
        else:
            with gzip.open(path, "rt") as file:
                rows = [json.loads(line) for line in file][:limit]
            tokenizer = AutoTokenizer.from_pretrained(models / task["model"])
            if "response" in task:
                tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
                prompts = [tokenizer(task["text"].format(**row))["input_ids"] for row in rows]
                answers = [
                    tokenizer(
                        task["response"].format(**{**row, "answer": _number(row["answer"])}) + tokenizer.eos_token
                    )["input_ids"]
                    for row in rows
                ]
                columns = _padded(prompts, answers, task["length"], tokenizer.pad_token_id)
            else:
                found = tokenizer(
                    [task["text"].format(**row) for row in rows],
                    padding="max_length",
                    truncation=True,
                    max_length=task["length"],
                    return_tensors="pt",
                )
                columns = dict(found) | {"labels": torch.tensor([row["label"] for row in rows])}
        count = len(columns["labels"])
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        held = min(1000, count // 8)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.valid = {k: v[order[:held]].to(device) for k, v in columns.items()}
        self.train = {k: v[order[held:]].to(device) for k, v in columns.items()}


def _number(answer):
    return f"{answer:g}" if isinstance(answer, float) else answer


def _padded(prompts, answers, length, pad):
    keep = [i for i in range(len(prompts)) if len(prompts[i]) + len(answers[i]) <= length]
    ids = torch.full((len(keep), length), pad)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, i in enumerate(keep):
        end = len(prompts[i]) + len(answers[i])
        ids[row, :end] = torch.tensor(prompts[i] + answers[i])
        labels[row, len(prompts[i]) : end] = torch.tensor(answers[i])
        mask[row, :end] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@functools.lru_cache(maxsize=6)
def base_and_rows(name: str, models: Path, data: Path, limit: int | None):
    """The pretrained model of a task, on the CPU, and its rows."""
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification

    folder = models / TASKS[name]["model"]
    if name == "cifar10":
        model = AutoModelForImageClassification.from_pretrained(folder, num_labels=10, dtype=torch.float32)
    elif "response" in TASKS[name]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    return model, Rows(name, models, data, limit)


def inputs(batch, train: bool):
    """A batch as the model takes it: images cropped (in training), resized to 224 and normalised."""
    if "pixel_values" not in batch:
        return batch
    pixels = batch["pixel_values"].float() / 255
    count = len(pixels)
    if train:
        side = (0.9 + 0.1 * torch.rand(count, device=pixels.device)).sqrt()
        shift = (torch.rand(count, 2, device=pixels.device) * 2 - 1) * (1 - side)[:, None]
        theta = torch.zeros(count, 2, 3, device=pixels.device)
        theta[:, 0, 0] = theta[:, 1, 1] = side
        theta[:, :, 2] = shift
        pixels = F.grid_sample(
            pixels,
            F.affine_grid(theta, (count, 3, 224, 224), align_corners=False),
            mode="bicubic",
            padding_mode="reflection",
            align_corners=False,
        )
    else:
        pixels = F.interpolate(pixels, size=224, mode="bicubic", antialias=True)
    return {"pixel_values": (pixels.clamp(0, 1) - 0.45) / 0.226, "labels": batch["labels"]}


def forward(model, batch, train: bool):
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        return model(**inputs(batch, train))


def heads(model):
    return [
        m
        for n, m in model.named_modules()
        if n.rpartition(".")[2] in ("classifier", "score") and isinstance(m, nn.Linear)
    ]


def targets(model) -> list[str]:
    """Every linear but the head, as the paper has it."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return [n for n in names if n.rpartition(".")[2] not in ("classifier", "score", "lm_head")]


def gradients(model, rows, batch: int, seed: int, centred: bool, batches: int = 8):
    """The loss's gradient for every target, over some training batches: their sum, and the sums of `G^T G` over batches.

    `centred`: the head's bias is the log of the classes' shares for as long, so that what all classes share cancels.
    """
    wanted = set(targets(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.removesuffix(".weight") in wanted)
    order = torch.randperm(len(rows.train["labels"]), generator=torch.Generator().manual_seed(1000 + seed))
    modules = dict(model.named_modules())
    total, moment = {}, {}
    model.eval()
    if centred:
        seen = order[: batches * batch].to(rows.train["labels"].device)
        counts = torch.bincount(rows.train["labels"][seen], minlength=heads(model)[0].out_features) + 1
        with torch.no_grad():
            heads(model)[0].bias.copy_((counts / counts.sum()).log())
    for i in range(batches):
        chosen = order[(torch.arange(batch) + i * batch) % len(order)]
        model.zero_grad()
        forward(model, {k: v[chosen.to(v.device)] for k, v in rows.train.items()}, True).loss.backward()
        for name in wanted:
            g = modules[name].weight.grad.float()
            total[name] = total[name] + g if name in total else g
            moment[name] = moment[name] + g.T @ g if name in moment else g.T @ g
    model.zero_grad(set_to_none=True)
    model.requires_grad_(True)
    if centred:
        nn.init.zeros_(heads(model)[0].bias)
    return total, moment


@torch.no_grad()
def start_experts(model, start: str, total, moment) -> None:
    """Set A of every layer; B is zero, so that the model still equals its base."""
    for name, layer in model.named_modules():
        if not isinstance(layer, GoatLayer):
            continue
        name = name.removeprefix("base_model.model.")
        A = layer.goat_A["default"]
        weight = layer.base_weight().float()
        rank = A.shape[0]
        if start == "segments":  # the paper's segments, right singular vectors of the weight
            V = torch.linalg.svd(weight, full_matrices=False)[2]
            config = layer.configs["default"]
            step = len(V) // config.num_experts
            V = torch.cat([V[j * step : j * step + config.expert_rank] for j in range(config.num_experts)])
        elif start == "chosen":  # the singular vectors of the weight that catch most of the gradient
            V = torch.linalg.svd(weight, full_matrices=False)[2]
            V = V[(total[name] @ V.T).square().sum(0).topk(rank).indices]
        elif start == "gradient":
            V = torch.svd_lowrank(total[name], q=rank + 8, niter=4)[2].T[:rank]
        elif start in ("mixed", "one"):  # half of the rows, or one, from the gradient; Kaiming's others stay
            own = rank // 2 if start == "mixed" else 1
            V = torch.svd_lowrank(total[name], q=rank + 8, niter=4)[2].T[:own]
            V = torch.cat([V, A[own:] / KAIMING])
        elif start == "gradient-copies":  # every expert the same subspace
            config = layer.configs["default"]
            V = (
                torch.svd_lowrank(total[name], q=config.expert_rank + 8, niter=4)[2]
                .T[: config.expert_rank]
                .repeat(config.num_experts, 1)
            )
        elif start == "batches":
            V = torch.svd_lowrank(moment[name], q=rank + 8, niter=4)[2].T[:rank]
        A.copy_(V * KAIMING)


def build(job, base, rows, rank: int):
    """A fresh model of the variant."""
    torch.manual_seed(job["seed"])
    model = copy.deepcopy(base)
    for head in heads(model):
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    variant = VARIANTS[job["variant"]]
    if variant["kind"] == "full":
        return model
    names = targets(model)
    extra = {"modules_to_save": ["classifier"]} if heads(model) else {}
    if variant["kind"] == "lora":
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, **extra))
    start = variant.get("start")
    found = (
        gradients(model, rows, TASKS[job["task"]]["batch"], job["seed"], variant.get("centred", False))
        if start in ("gradient", "gradient-copies", "chosen", "batches", "mixed", "one")
        else (None, None)
    )
    torch.manual_seed(job["seed"] + 1)
    model = get_peft_model(model, GoatConfig(**({"r": rank} | variant["config"]), target_modules=names, **extra))
    if start:
        start_experts(model, start, *found)
    if "router" in variant:
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, GoatLayer):
                    layer.goat_router["default"].mul_(variant["router"])
    return model


class Stepper:
    """One training step: forward, backward, clipping, AdamW; captured once in a CUDA graph where there is a GPU."""

    def __init__(self, model, rate: float, factors: dict[str, float], example) -> None:
        self.model, self.rate = model, rate
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                factor = next((f for pattern, f in factors.items() if re.search(pattern, name)), 1.0)
                groups.setdefault(factor, []).append(parameter)
        self.parameters = [p for group in groups.values() for p in group]
        self.cuda = torch.cuda.is_available()
        self.factors = list(groups)
        rates = [torch.zeros((), device="cuda") if self.cuda else 0.0 for _ in groups]
        self.optimizer = torch.optim.AdamW(
            [{"params": p, "lr": r} for p, r in zip(groups.values(), rates)],
            weight_decay=0,
            **({"fused": True, "capturable": True} if self.cuda else {}),
        )
        if not self.cuda:
            return
        self.batch = {k: v.clone() for k, v in example.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # with a learning rate of zero
            for _ in range(3):
                self._step(self.batch)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self._step(self.batch)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def _step(self, batch):
        self.optimizer.zero_grad(set_to_none=True)
        loss = forward(self.model, batch, True).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return loss.detach()

    def __call__(self, batch, share: float):
        """A step at `share` of the learning rate."""
        for group, factor in zip(self.optimizer.param_groups, self.factors):
            if self.cuda:
                group["lr"].fill_(self.rate * factor * share)
            else:
                group["lr"] = self.rate * factor * share
        if not self.cuda:
            return self._step(batch)
        for key, value in batch.items():
            self.batch[key].copy_(value)
        self.graph.replay()
        return self.loss


@torch.no_grad()
def score(model, rows, metric: str) -> float:
    model.eval()
    count = len(rows.valid["labels"])
    hits, guesses = [], []
    for i in range(0, count, 128):
        batch = {k: v[i : i + 128] for k, v in rows.valid.items()}
        logits = forward(model, batch, False).logits
        if metric == "exact":  # greedy decoding gives the reference just where every next token does
            labels = batch["labels"][:, 1:]
            hits.append(((logits[:, :-1].argmax(-1) == labels) | (labels == -100)).all(1))
        else:
            guesses.append(logits.argmax(-1))
    if metric == "exact":
        return torch.cat(hits).float().mean().item()
    guess, truth = torch.cat(guesses).cpu(), rows.valid["labels"].cpu()
    if metric == "accuracy":
        return (guess == truth).float().mean().item()
    tp, tn = ((guess == 1) & (truth == 1)).sum().item(), ((guess == 0) & (truth == 0)).sum().item()
    fp, fn = ((guess == 1) & (truth == 0)).sum().item(), ((guess == 0) & (truth == 1)).sum().item()
    return (tp * tn - fp * fn) / math.sqrt(max(1, (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


def run(job, models: Path, data: Path, limit: int | None):
    """Train and score one job; returns its row."""
    begin = time.time()
    task = TASKS[job["task"]]
    base, rows = base_and_rows(job["task"], models, data, limit)
    model = build(job, base, rows, job.get("rank", 8))
    model.train()
    variant = VARIANTS[job["variant"]]
    batch = min(task["batch"], len(rows.train["labels"]))
    head = {"classifier": job["head"] / job["rate"]} if "head" in job else {}
    stepper = Stepper(
        model, job["rate"], variant.get("factors", {}) | head, {k: v[:batch] for k, v in rows.train.items()}
    )
    generator = torch.Generator().manual_seed(job["seed"])
    per_epoch = len(rows.train["labels"]) // batch
    epochs = job.get("epochs", task["epochs"])
    steps, step, losses = per_epoch * epochs, 0, []
    warmup = max(1, steps // 10)
    built = time.time()
    for _ in range(epochs):
        order = torch.randperm(len(rows.train["labels"]), generator=generator).to(rows.train["labels"].device)
        for i in range(per_epoch):
            share = min(1, (step + 1) / warmup) * (
                0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / max(1, steps - warmup))
            )
            chosen = order[i * batch : (i + 1) * batch]
            loss = stepper({k: v[chosen] for k, v in rows.train.items()}, share)
            step += 1
            if step % max(1, steps // 10) == 0:
                losses.append(loss.clone())
    value = score(model, rows, task["metric"])
    return job | {
        "value": value,
        "losses": [round(x.item(), 4) for x in losses],
        "steps": steps,
        "built_s": round(built - begin, 2),
        "seconds": round(time.time() - begin, 2),
    }


def work(index: int, arguments) -> None:
    """Take jobs that nobody has taken until none are left or time is up."""
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.cuda.set_device(index % torch.cuda.device_count())
    jobs = json.loads(arguments.jobs.read_text())
    claims = arguments.out.with_suffix(".claims")
    for number, job in enumerate(jobs):
        if time.time() > arguments.until:
            return
        try:
            os.close(os.open(claims / str(number), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        try:
            row = run(job, arguments.models, arguments.data, arguments.limit)
        except Exception as error:  # noqa: BLE001 - one variant's failure must not end the others
            row = job | {"value": None, "error": f"{type(error).__name__}: {error}"[:300]}
        torch.cuda.empty_cache()
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    arguments.until = time.time() + arguments.seconds
    arguments.out.with_suffix(".claims").mkdir(exist_ok=True)
    arguments.out.touch()
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(index, arguments), daemon=True) for index in range(arguments.workers)]
    for worker in workers:
        worker.start()
    total, shown = len(json.loads(arguments.jobs.read_text())), 0
    while any(worker.is_alive() for worker in workers):
        time.sleep(5)
        done = arguments.out.read_text().count("\n")
        if done - shown >= 25:
            print(f"{time.strftime('%H:%M:%S')} {done} of {total}", file=sys.stderr, flush=True)
            shown = done


if __name__ == "__main__":
    main()
