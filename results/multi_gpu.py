"""Several GPUs against one: a step's loss and gradients, the saved adapter, the start, throughput. One subprocess a strategy.

python results/multi_gpu.py --out $OUT/multi.json            on a machine with 2 or more GPUs
python results/multi_gpu.py --out /tmp/multi.json --tiny     here: gloo, two processes, a tiny model in float32
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

STRATEGIES = ("single", "ddp", "fsdp2", "zero2", "zero3")
LR = 1e-4
TARGET = 1.8


# ---- the parent: one subprocess a strategy ---------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--processes", type=int, default=0, help="0: every GPU, 2 without")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--timeout", type=int, default=90, help="seconds for one strategy")
    parser.add_argument("--budget", type=int, default=350, help="seconds for all of them")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/multi"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--bf16", action="store_true", help="with --tiny: a bfloat16 base under autocast, as on the GPU"
    )
    parser.add_argument("--worker", default="")
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    import torch

    options.processes = options.processes or (2 if options.tiny else torch.cuda.device_count())
    options.folder.mkdir(parents=True, exist_ok=True)
    begin, rows = time.monotonic(), []
    for strategy in options.strategies.split(","):
        left = options.budget - (time.monotonic() - begin)
        row = run(strategy, options, min(options.timeout, left)) if left > 20 else {"error": "no time left"}
        row = {"strategy": strategy, "processes": 1 if strategy == "single" else options.processes} | row
        single = next((r for r in rows if r["strategy"] == "single" and "tokens_per_s" in r), None)
        if single and "tokens_per_s" in row:
            row["throughput_over_single"] = round(row["tokens_per_s"] / single["tokens_per_s"], 3)
            row["target"] = TARGET * options.processes / 2 if strategy != "single" else 1.0
        rows.append(row)
        print({k: v for k, v in row.items() if k != "tail"}, flush=True)
        write(options.out, {"environment": environment(options), "rows": rows})


def run(strategy: str, options: argparse.Namespace, timeout: float) -> dict[str, Any]:
    """One strategy in processes of its own; what went wrong is a row too."""
    import goat_peft

    result = options.folder / f"{strategy}.json"
    result.unlink(missing_ok=True)
    flags = [
        "--out",
        options.out,
        "--worker",
        strategy,
        "--folder",
        options.folder,
        "--layers",
        options.layers,
        "--steps",
        options.steps,
    ]
    flags = [
        *map(str, flags),
        "--processes",
        str(options.processes),
        *(["--tiny"] if options.tiny else []),
        *(["--bf16"] if options.bf16 else []),
    ]
    command = [sys.executable, __file__, *flags]
    environ = dict(os.environ)  # NVLink multicast stays off where the machine says so
    if strategy != "single":
        config = Path(goat_peft.__file__).parent / "recipes" / "launch" / f"{strategy}.yaml"
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        if strategy.startswith("zero"):
            launcher += ["--gradient_accumulation_steps", "1"]  # "auto" is for transformers' Trainer
        command = [
            *launcher,
            "--num_processes",
            str(options.processes),
            "--main_process_port",
            str(29600 + STRATEGIES.index(strategy)),
            __file__,
            *flags,
        ]
    elif not options.tiny:
        environ["CUDA_VISIBLE_DEVICES"] = environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    log = options.folder / f"{strategy}.log"
    begin = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environ, start_new_session=True)
        try:
            code: Any = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = f"stopped after {timeout:.0f} s"
        finally:
            try:  # the launcher's workers, in the group that this process started
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
    row = json.loads(result.read_text()) if result.is_file() else {}
    if code != 0 or "step_ms" not in row:
        lines = log.read_text(errors="replace").splitlines()
        told = [line for line in lines if "Error" in line or "error:" in line]
        row |= {"error": f"exit {code}: {told[-1][:300] if told else ''}", "tail": lines[-60:]}
    return row | {"seconds": round(time.monotonic() - begin, 1), "command": shlex.join(map(str, command[1:]))}


def environment(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    def known(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    names = ("goat-peft", "torch", "transformers", "peft", "accelerate", "deepspeed", "triton")
    return {
        "device": gpus or f"CPU, {torch.get_num_threads()} threads, gloo",
        "peer_access": bool(gpus[1:]) and torch.cuda.can_device_access_peer(0, 1),
        "nccl": {k: v for k, v in os.environ.items() if k.startswith(("NCCL", "TORCH_SYMM", "NVSHMEM"))},
        "versions": {n: known(n) for n in names}
        | {"python": sys.version.split()[0], "nccl": ".".join(map(str, torch.cuda.nccl.version())) if gpus else None},
        "model": "tiny Llama, float32"
        if options.tiny
        else f"Llama-2-7B shapes, {options.layers} layers, random weights, bf16, adapters float32, autocast",
        "batch": "2 x 16 tokens a process" if options.tiny else "4 x 1024 tokens a GPU",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
    }


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1, default=str) + "\n")
    part.replace(path)


# ---- a worker --------------------------------------------------------------------------------------------------------------------------------


def work(options: argparse.Namespace) -> None:
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs

    strategy, row = options.worker, {}
    torch.set_num_threads(1 if options.tiny else 8)
    if options.tiny:  # accelerate refuses DeepSpeed on a CPU: see `prepare`
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    accelerator = Accelerator(
        cpu=options.tiny, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)]
    )
    try:
        measure(strategy, options, accelerator, row)
    except BaseException:
        row["error"] = traceback.format_exc()[-1500:]
        raise
    finally:
        if accelerator.is_main_process and row:
            write(options.folder / f"{strategy}.json", row)
    accelerator.end_training()


def measure(strategy: str, options: argparse.Namespace, accelerator: Any, row: dict[str, Any]) -> None:
    import torch
    from accelerate.utils import gather_object
    from peft import get_peft_model
    from safetensors.torch import load_file, save_file

    from goat_peft import GoatConfig, initialize_together
    from goat_peft.adapter import factor_cache, initialization

    device, main = accelerator.device, accelerator.is_main_process
    cuda = device.type == "cuda"
    base = build(options, device)
    svds, triplets = [], initialization.singular_triplets
    initialization.singular_triplets = lambda *args: svds.append(1) or triplets(*args)
    torch.manual_seed(1)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = GoatConfig(
        r=8 if options.tiny else 32,
        num_experts=4 if options.tiny else 8,
        top_k=2,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    synchronize(cuda)
    begin = time.perf_counter()
    with factor_cache.use_factor_cache(None), initialize_together():
        model = get_peft_model(base, config)
    synchronize(cuda)
    seconds = round(time.perf_counter() - begin, 2)
    hashes = [factor_cache.weight_hash(p.detach()) for n, p in model.named_parameters() if p.requires_grad]
    everyone = gather_object([(hashes, len(svds), seconds)])
    row |= {
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "svds_per_process": [e[1] for e in everyone], "init_s_per_process": [e[2] for e in everyone],
        "same_start_everywhere": all(e[0] == everyone[0][0] for e in everyone), "start": hash_of(hashes),
    }  # fmt: skip
    if cuda or options.bf16:
        model.forward = torch.autocast(device.type, torch.bfloat16)(model.forward)  # inside every engine's wrapper
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
    deepspeed = strategy.startswith("zero")
    wrapped, optimizer = prepare(strategy, options, accelerator, model, optimizer)

    # One step on the global batch: a micro-batch for each process, or all of them accumulated in one.
    count = options.processes
    mine = range(count) if strategy == "single" else [accelerator.process_index]
    total = torch.zeros((), device=device)
    for index in mine:
        loss = wrapped(**batch(options, index, device)).loss
        (wrapped if deepspeed else accelerator).backward(loss / len(mine))
        total += loss.detach().float() / len(mine)
    row["loss"] = accelerator.reduce(total, "mean").item()
    gradients = whole_gradients(model, deepspeed)
    step(wrapped, optimizer, deepspeed)
    single = options.folder / "single"
    if strategy == "single":
        single.mkdir(exist_ok=True)
        save_file(gradients, single / "gradients.safetensors")
        write(single / "loss.json", {"loss": row["loss"], "start": row["start"]})
    elif main and (single / "loss.json").is_file():
        before = json.loads((single / "loss.json").read_text())
        row |= {
            "single_loss": before["loss"],
            "loss_relative_difference": abs(row["loss"] - before["loss"]) / abs(before["loss"]),
        }
        row |= {"start_same_as_single": before["start"] == row["start"]}
        row |= {f"gradient_{k}": v for k, v in compare(gradients, load_file(single / "gradients.safetensors")).items()}
    del gradients

    folder = single / "adapter" if strategy == "single" else options.folder / f"{strategy}-adapter"
    state = full_state(strategy, accelerator, wrapped)
    if main:
        model.save_pretrained(folder, state_dict=state)
    del state
    if main and (single / "adapter" / "adapter_model.safetensors").is_file():
        saved, expected = (load_file(f / "adapter_model.safetensors") for f in (folder, single / "adapter"))
        row["adapter_same_names_shapes_dtypes"] = describe(saved) == describe(expected)
        values = ({n: t for n, t in tensors.items() if not n.endswith(".goat_digest")} for tensors in (saved, expected))
        row |= {f"adapter_{k}": v for k, v in compare(*values).items()}
        row["adapter_loads"] = loads(options, folder, saved, device)
    accelerator.wait_for_everyone()

    # Throughput: the same batch for each GPU, eager.
    inputs, times = batch(options, accelerator.process_index, device), []
    for _ in range(4):
        train_step(wrapped, optimizer, accelerator, deepspeed, inputs)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        synchronize(cuda)
        accelerator.wait_for_everyone()
        begin = time.perf_counter()
        for _ in range(options.steps):
            train_step(wrapped, optimizer, accelerator, deepspeed, inputs)
        synchronize(cuda)
        times.append((time.perf_counter() - begin) * 1e3 / options.steps)
    slowest = max(gather_object([statistics.median(times)]))
    tokens = inputs["input_ids"].numel() * accelerator.num_processes
    row |= {"step_ms": round(slowest, 2), "tokens_per_s": round(tokens / slowest * 1e3, 1)}
    if cuda:
        row["peak_gib_per_process"] = gather_object([round(torch.cuda.max_memory_allocated() / 2**30, 2)])


def build(options: argparse.Namespace, device: Any) -> Any:
    """The frozen base, the same in every process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if not options.tiny:
        from goat_peft.bench.workloads import build_base

        return build_base("llama-2-7b", options.layers, torch.bfloat16, str(device))
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=64, pad_token_id=0, **shape))
    return (model.bfloat16() if options.bf16 else model).requires_grad_(False)


def batch(options: argparse.Namespace, index: int, device: Any) -> dict[str, Any]:
    import torch

    shape, words = ((2, 16), 64) if options.tiny else ((4, 1024), 32000)
    ids = torch.randint(3, words, shape, generator=torch.Generator().manual_seed(100 + index)).to(device)
    return {"input_ids": ids, "labels": ids.clone()}


def prepare(
    strategy: str, options: argparse.Namespace, accelerator: Any, model: Any, optimizer: Any
) -> tuple[Any, Any]:
    """Through accelerate; on the CPU, where accelerate knows neither FSDP nor DeepSpeed, with the parts that it would use."""
    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

    if strategy.startswith("zero"):
        import deepspeed

        plugin = DeepSpeedPlugin() if options.tiny else accelerator.state.deepspeed_plugin
        settings = {"train_micro_batch_size_per_gpu": 2 if options.tiny else 4, "gradient_clipping": 0.0}
        plugin.deepspeed_config |= settings
        if options.tiny:
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled
            plugin.deepspeed_config |= {
                "train_batch_size": 2 * options.processes,
                "gradient_accumulation_steps": 1,
                "zero_allow_untested_optimizer": True,
            }
            engine, optimizer, _, _ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=plugin.deepspeed_config
            )
            return engine, optimizer
    if strategy == "fsdp2" and options.tiny:
        import torch
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        plugin = FullyShardedDataParallelPlugin()  # from the launcher's environment
        state = SimpleNamespace(fsdp_plugin=plugin)
        stand_in = SimpleNamespace(
            state=state, mixed_precision="no", is_main_process=accelerator.is_main_process, device=accelerator.device
        )
        model = fsdp2_prepare_model(stand_in, model)
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
    return accelerator.prepare(model, optimizer)


def full_state(strategy: str, accelerator: Any, wrapped: Any) -> dict[str, Any] | None:
    if strategy == "fsdp2" and accelerator.device.type == "cpu":
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(
            wrapped, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
        )
    if strategy == "zero3" and accelerator.device.type == "cpu":
        return wrapped._zero3_consolidated_16bit_state_dict()
    return accelerator.get_state_dict(wrapped)


def train_step(wrapped: Any, optimizer: Any, accelerator: Any, deepspeed: bool, inputs: dict[str, Any]) -> None:
    (wrapped if deepspeed else accelerator).backward(wrapped(**inputs).loss)
    step(wrapped, optimizer, deepspeed)


def step(wrapped: Any, optimizer: Any, deepspeed: bool) -> None:
    if deepspeed:
        wrapped.step()
    else:
        optimizer.step()
        optimizer.zero_grad()


def whole_gradients(model: Any, deepspeed: bool) -> dict[str, Any]:
    """Gradients by name, whole, on the CPU; every process must call it."""
    from torch.distributed.tensor import DTensor

    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if deepspeed:
            from deepspeed.utils import safe_get_full_grad

            gradient = safe_get_full_grad(parameter)
        else:
            gradient = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        found[name] = gradient.detach().float().cpu().contiguous().clone()
    return found


def compare(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """How far tensors of the same names are apart: relative norms, over all and in the worst tensor, and how many are the same to the bit."""
    import torch

    if found.keys() != expected.keys():
        return {"names_differ": sorted(found.keys() ^ expected.keys())[:4]}
    apart = {n: torch.linalg.vector_norm(found[n].double() - expected[n].double()).item() for n in found}
    size = {n: torch.linalg.vector_norm(expected[n].double()).item() for n in found}
    worst = max(found, key=lambda n: apart[n] / max(size[n], 1e-30))
    return {
        "relative_difference": sum(a * a for a in apart.values()) ** 0.5 / sum(s * s for s in size.values()) ** 0.5,
        "worst_relative_difference": apart[worst] / max(size[worst], 1e-30), "worst": worst,
        "max_absolute_difference": max((found[n] - expected[n]).abs().max().item() for n in found),
        "tensors": len(found), "tensors_same_to_the_bit": sum(torch.equal(found[n], expected[n]) for n in found),
    }  # fmt: skip


def describe(tensors: dict[str, Any]) -> dict[str, tuple]:
    return {name: (tuple(t.shape), str(t.dtype)) for name, t in tensors.items()}


def loads(options: argparse.Namespace, folder: Path, saved: dict[str, Any], device: Any) -> bool | str:
    """Whether PeftModel.from_pretrained gives back what the file holds, on a fresh base."""
    import torch
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    try:
        found = get_peft_model_state_dict(PeftModel.from_pretrained(build(options, device), str(folder)))
        return found.keys() == saved.keys() and all(torch.equal(found[n].cpu(), saved[n]) for n in saved)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return f"{type(error).__name__}: {error}"[:300]


def hash_of(values: list[str]) -> str:
    import hashlib

    return hashlib.sha256("".join(values).encode()).hexdigest()[:16]


def synchronize(cuda: bool) -> None:
    if cuda:
        import torch

        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
