"""Measurements, one file a question; each measures all methods in one run and appends rows to `benchmarks/results/`."""

QUESTIONS = {
    "train-step": "a training step, eager, as a CUDA graph (--graph) or compiled (--compile)",
    "decode": "one decoded token, eager and as a CUDA graph",
    "init": "the experts' first values, and from the cache on disk",
    "quantised": "a training step on a quantised base against LoRA on it (QLoRA)",
    "memory": "peak memory of a training step",
    "cpu-step": "a training step on the CPU",
}
