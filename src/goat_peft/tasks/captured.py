"""Training steps captured in CUDA graphs, once for each shape of batch, and replayed: for models that wait for the host.

A replay repeats what the device did, not what Python did. So whatever a step leaves behind has to lie in tensors that it writes in place: gradients
(`Gradients`), expert usage (`adapter.routing`), the logged balance loss (`trainers.BalanceLog`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import first_line

# Steps of a shape before it is captured: layers learn what they share, kernels compile, what is lazy gets allocated.
EAGER = 3
# Graphs of one run; batches of further shapes run as they always do.
SHAPES = 16
# Texts are padded to multiples of so many tokens.
MULTIPLE = 32
# What a loss over tokens is divided by; it goes to a graph with the batch.
ITEMS = "num_items_in_batch"

Step = Callable[[], Tensor]
_BROKEN: list[torch.cuda.CUDAGraph] = []  # graphs that torch's allocators may still ask about their capture


class Recorder(Protocol):
    """What captures a step."""

    def stream(self) -> AbstractContextManager[None]:
        """Where steps run, captured or not."""

    def capture(self, step: Step) -> Step:
        """Record `step`, which returns a tensor, without running it; the result runs it on the same memory and returns a copy of its tensor."""


class CudaGraphs:
    """CUDA graphs that share their memory, as only one of them runs at a time.

    All steps run on the stream that captures: an autograd node keeps the stream it was made on, and cuBLAS one workspace for each.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self._stream = torch.cuda.Stream(self.device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def stream(self) -> Iterator[None]:
        """The stream of its own, in step with the current one."""
        around = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(around)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            around.wait_stream(self._stream)

    def capture(self, step: Step) -> Step:
        """See `Recorder`. Raises what `step` raises, `RuntimeError` where it waits for the device; then nothing is left in the state of a capture."""
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: one that pins the next batch may go on meanwhile.
        capturing = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        try:
            with capturing:
                outcome = step()
        except BaseException:
            self._leave(graph)
            raise

        def replay() -> Tensor:
            graph.replay()
            return outcome.clone()

        return replay

    def _leave(self, graph: torch.cuda.CUDAGraph) -> None:
        """End what torch leaves open when the device itself refused a capture: allocation into the pool, and the generator's captured offsets."""
        generator = torch.cuda.default_generators[self.device.index]
        generator.graphsafe_set_state(generator.clone_state())  # the same seed and offset, outside of any graph
        with suppress(RuntimeError):  # nothing is open
            torch._C._cuda_endAllocateToPool(self.device.index, self._pool)
            torch._C._cuda_releasePool(self.device.index, self._pool)
            _BROKEN.append(graph)


def recorder(device: torch.device) -> Recorder | None:
    """What captures steps on `device`; None where nothing does."""
    return CudaGraphs(device) if device.type == "cuda" else None


class Gradients:
    """One tensor for each parameter's gradient, which every graph adds to; batches of one optimiser step add up there as they do without graphs."""

    def __init__(self) -> None:
        self._held: dict[nn.Parameter, Tensor] = {}

    def learn(self, model: nn.Module) -> None:
        """Keep the tensors that a step gave to parameters which had none; those that never get one keep none, as the optimiser skips them."""
        for parameter in model.parameters():
            if parameter.grad is not None:
                self._held.setdefault(parameter, parameter.grad)

    def attach(self) -> None:
        """Make the tensors the parameters' gradients, with what those hold: zeros where there is nothing yet."""
        empty = []
        for parameter, held in self._held.items():
            if parameter.grad is None:
                empty.append(held)
            elif parameter.grad is not held:
                held.copy_(parameter.grad)
            parameter.grad = held
        if empty:
            torch._foreach_zero_(empty)

    def drop_others(self, model: nn.Module) -> None:
        """Take gradients away that are not the tensors attached: what a refused capture left was recorded, never computed."""
        for parameter in model.parameters():
            parameter.grad = self._held.get(parameter)

    def forget(self) -> None:
        """Let the tensors go."""
        self._held.clear()

    def check(self, model: nn.Module) -> None:
        """Raise `RuntimeError` if a parameter's gradient is another tensor than the one attached."""
        if any(parameter.grad is not self._held.get(parameter) for parameter in model.parameters()):
            raise RuntimeError("a gradient is not where the steps before had it")


@dataclass(frozen=True)
class _Captured:
    inputs: dict[str, Tensor]
    replay: Step


class FewLengths:
    """A collator that pads to the next multiple of `MULTIPLE` tokens, but not beyond `longest`, the training data's longest text.

    `collator` pads rows of `input_ids` to a multiple of its `pad_to_multiple_of`.
    """

    def __init__(self, collator: Any, longest: int) -> None:
        self.collator, self.longest = collator, longest

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad the rows; a batch with a text longer than `longest` to its own length."""
        own = max(len(row["input_ids"]) for row in rows)
        self.collator.pad_to_multiple_of = max(own, min(math.ceil(own / MULTIPLE) * MULTIPLE, self.longest))
        return dict(self.collator(rows))


class CapturedSteps:
    """Mix-in for a Trainer of one process and one device: after `capture_steps`, forward and backward are captured and replayed.

    Clipping, optimiser, schedule and callbacks are the trainer's as ever. A step that cannot be captured ends it for the rest of the training,
    with a line in `notes`, and so does a training of which no step was. A parameter that only some steps use has a gradient of zeros in the others,
    not none, so that the optimiser's momentum moves it there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.notes: list[str] = []
        self._recorder: Recorder | None = None
        self._captured: dict[Any, _Captured] = {}
        self._seen: Counter[Any] = Counter()
        self._gradients = Gradients()
        self._cost = 0
        super().__init__(*args, **kwargs)

    @property
    def captures(self) -> bool:
        """Whether steps are captured, or would be once their shape is known."""
        return self._recorder is not None

    def capture_steps(self, tell: Callable[[str], None]) -> bool:
        """Capture steps from now on, where the device can; returns whether it can. `tell` gets each line that goes to `notes`."""
        self._tell = tell
        self._recorder = recorder(self.args.device)  # type: ignore[attr-defined]
        if self._recorder is None:
            self._note("training.cuda_graphs=True: no CUDA device, so steps are not captured")
        return self._recorder is not None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the graphs and their memory are given back at the end."""
        try:
            outcome = super().train(*args, **kwargs)  # type: ignore[misc]
            if self.captures and not self._captured:
                self._note(
                    f"training.cuda_graphs=True: no step was captured, as no shape of batch came more than {EAGER} times"
                )
            return outcome
        finally:
            self._forget()

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one batch, by replaying what was captured for its shape."""
        step = super().training_step  # type: ignore[misc]
        if self._recorder is None:
            return step(model, inputs, num_items_in_batch)
        batch = dict(self._prepare_inputs(inputs))  # type: ignore[attr-defined]
        if num_items_in_batch is not None:
            batch[ITEMS] = torch.as_tensor(num_items_in_batch, device=self.args.device)  # type: ignore[attr-defined]

        def on(held: dict[str, Tensor]) -> Tensor:
            return step(model, {name: value for name, value in held.items() if name != ITEMS}, held.get(ITEMS))

        shape = self._shape(batch)
        with self._recorder.stream():
            if self._seen[shape] >= EAGER and (shape in self._captured or len(self._captured) < SHAPES):
                loss = self._replayed(model, shape, batch, on)
                if loss is not None:
                    return loss
            if shape is not None:
                self._seen[shape] += 1
            if self._seen[shape] == EAGER:
                self._gradients.attach()  # so that the kernels which add to them are known as well
            loss = on(batch)
            if self.captures:
                self._gradients.learn(model)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As the trainer counts them: 6 times tokens times parameters. The parameters are counted once, as a walk over all modules takes as long as a replay."""
        counted = inputs.get(getattr(self.model, "main_input_name", "input_ids"))  # type: ignore[attr-defined]
        if self._recorder is None or not isinstance(counted, Tensor):
            return int(super().floating_point_ops(inputs))  # type: ignore[misc]
        if not self._cost:
            self._cost = super().floating_point_ops(inputs) // counted.numel()  # type: ignore[misc]
        return self._cost * counted.numel()

    def _shape(self, batch: dict[str, Any]) -> Any:
        """What a graph is captured for; None for a batch that no graph could take."""
        if not all(isinstance(value, Tensor) for value in batch.values()):
            return None
        # The loss is divided by the number of batches, which is smaller at the end of an epoch.
        return self.current_gradient_accumulation_steps, *(  # type: ignore[attr-defined]
            (name, value.shape, value.dtype) for name, value in sorted(batch.items())
        )

    def _replayed(
        self, model: nn.Module, shape: Any, batch: dict[str, Tensor], step: Callable[[dict[str, Tensor]], Tensor]
    ) -> Tensor | None:
        """The loss of a replay, captured first where it was not; None if it cannot be."""
        self._gradients.attach()
        if shape not in self._captured:
            held = {name: value.clone() for name, value in batch.items()}
            try:
                replay = self._recorder.capture(lambda: step(held))  # type: ignore[union-attr]
                self._gradients.check(model)
            except Exception as error:  # noqa: BLE001 - whatever it was, the step runs again, and raises what is its own
                self._gradients.drop_others(model)
                # What the step met first; the end of a broken capture raises once more.
                self._give_up(error.__context__ or error)
                return None
            self._captured[shape] = _Captured(held, replay)
        captured = self._captured[shape]
        for name, tensor in captured.inputs.items():
            tensor.copy_(batch[name], non_blocking=True)
        if not model.training:  # as a step would leave it
            model.train()
        return captured.replay()

    def _forget(self) -> None:
        self._captured.clear()
        self._seen.clear()
        self._gradients.forget()

    def _give_up(self, error: BaseException) -> None:
        self._recorder = None
        self._forget()
        done = self.state.global_step  # type: ignore[attr-defined]
        self._note(
            f"training.cuda_graphs=True: the step after step {done} could not be captured ({first_line(error)}); training goes on without"
        )

    def _note(self, note: str) -> None:
        self.notes.append(note)
        self._tell(note)
