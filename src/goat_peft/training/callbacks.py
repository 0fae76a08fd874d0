"""What watches a training run: the progress bar, a clean stop, training that diverges, routers that collapse."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import UserError
from ..tasks import processes


class Interrupted(Exception):
    """The user stopped the run; its last checkpoint is whole."""


def bar() -> Progress:
    """Build the progress bar that all parts of a run share; it leaves no line behind when done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        transient=True,
        console=Console(stderr=True),
    )


class Bar(TrainerCallback):
    """Shows steps and the last logged loss."""

    def __init__(self, progress: Progress, description: str) -> None:
        self.progress = progress
        self.task = progress.add_task(description, total=None, note="")

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Learn how many steps there are."""
        self.progress.update(self.task, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move on by one step."""
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Show the loss."""
        logs = kwargs.get("logs") or {}
        if "loss" in logs:
            self.progress.update(self.task, note=f"loss {float(logs['loss']):.3f}")


class FirstInterrupt:
    """Inside a `with`, the first Ctrl-C sets `asked` and the second one interrupts at once; outside the main thread it leaves signals alone."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class CleanStop(FirstInterrupt, TrainerCallback):
    """Turns the first Ctrl-C around `trainer.train()` into: finish the step, save, stop."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save and stop when asked to."""
        if self.asked and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True


class Divergence(TrainerCallback):
    """Stops a run that no longer learns anything, naming the first step of it and what to try.

    That is: a logged loss that is no number; gradients whose norm is none in `PATIENCE` steps in a row, or in as many logs; a logged loss beyond
    `EXPLODED` and ten times the first one in `PATIENCE` logs in a row. A loss scale (float16) finds its place by skipping steps with infinite
    gradients, so those do not count then, and a loss only after `PATIENCE` logs. In a launch all processes stop together: each sees the gradients
    of its own shards, and they tell one another when they look at what they found.

    The norm in the log is the trainer's, from before it clips. Where finite gradients have a norm beyond float32, clipping by it makes them all
    zero, and nothing else shows that the run stands still.
    """

    PATIENCE = 3
    EXPLODED = 100.0  # a model that knows nothing has a cross-entropy of about 11 over 50,000 words
    _FETCH = 10  # steps; in between the verdict stays on its device, so that no step waits for it

    def __init__(self) -> None:
        self._verdict: Tensor | None = None  # steps in a row whose gradients are no numbers, and the first of them
        self._first_loss: float | None = None
        self._strange: list[int] = []  # steps of logs in a row
        self._unclipped: list[int] = []  # likewise, whose norm of gradients is no number

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the gradients of this step; engines that hide them (DeepSpeed) leave only the loss to look at."""
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if args.fp16 or not gradients:
            return
        norm = nn.utils.get_total_norm([g.to_local() if isinstance(g, DTensor) else g for g in gradients])
        if self._verdict is None:
            self._verdict = torch.zeros(2, dtype=torch.int64, device=norm.device)
        run, first = self._verdict.unbind()
        longer = torch.where(norm.isfinite(), 0, run + 1)
        self._verdict = torch.stack([longer, torch.where(longer == 1, state.global_step + 1, first)])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Fetch the verdict now and then."""
        if state.global_step % self._FETCH == 0:
            self._check_gradients(args)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Raise `UserError` for gradients or a loss beyond hope."""
        self._check_gradients(args)
        logs = kwargs.get("logs") or {}
        if "grad_norm" in logs and not args.fp16:
            self._unclipped = [] if math.isfinite(float(logs["grad_norm"])) else [*self._unclipped, state.global_step]
            if len(self._unclipped) >= self.PATIENCE:
                raise diverged(args, f"the norm of the gradients has been no number since step {self._unclipped[0]}")
        found = logs.get("loss")
        if found is None:
            return
        loss = float(found)
        if math.isfinite(loss) and self._first_loss is None:
            self._first_loss = loss
        exploded = math.isfinite(loss) and loss > max(self.EXPLODED, 10 * (self._first_loss or 0.0))
        if math.isfinite(loss) and not exploded:
            self._strange = []
            return
        self._strange.append(state.global_step)
        if len(self._strange) >= self.PATIENCE or not (exploded or args.fp16):
            started = f"; it was {self._first_loss:.4g} at first" if self._first_loss is not None else ""
            raise diverged(args, f"the loss is {loss:.4g} at step {self._strange[0]}{started}")

    def _check_gradients(self, args: TrainingArguments) -> None:
        own = (0, 0) if self._verdict is None else tuple(self._verdict.tolist())
        run, first = max(processes.gather([own]))
        if run >= self.PATIENCE:
            raise diverged(args, f"the gradients have been no numbers since step {first}")


def diverged(args: TrainingArguments, what: str) -> UserError:
    """The error of a run that no longer learns anything: what shows it, and what to try."""
    clipping = "" if args.max_grad_norm else ", or training.max_grad_norm=1"
    return UserError(
        f"training.learning_rate={args.learning_rate}: {what}; try a smaller learning rate or a longer warmup{clipping}"
    )


class CollapsedRouters(TrainerCallback):
    """Tells, once for each layer, when a router sends nearly all tokens to the same few experts.

    In a layer of E experts, k of them active, that is when k experts get `SHARE` of the routed slots between two logs.
    """

    SHARE = 0.95
    LEAST = 100  # tokens to judge by

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.notes: list[str] = []
        self._tell = tell
        self._seen: dict[tuple[str, str], Any] = {}
        self._known: set[tuple[str, str]] = set()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at what the routers did since the last look."""
        get = getattr(kwargs.get("model"), "expert_usage", None)
        if get is None or "loss" not in (kwargs.get("logs") or {}):
            return
        collapsed = []
        for row in get():
            key = (row.layer, row.adapter)
            now = torch.tensor([row.tokens, *(row.tokens * share for share in row.share)], dtype=torch.float64)
            new = now - self._seen.get(key, torch.zeros_like(now))
            if new[0] < self.LEAST:
                continue
            self._seen[key] = now
            active = kwargs["model"].peft_config[row.adapter].active_experts or 1
            shares = new[1:] / new[1:].sum().clamp_min(1)
            if active < len(shares) and shares.topk(active).values.sum() >= self.SHARE and key not in self._known:
                self._known.add(key)
                collapsed.append(f"{row.layer} ({' '.join(f'{share:.2f}' for share in shares.tolist())})")
        if collapsed:
            more = f" and {len(collapsed) - 3} more" if len(collapsed) > 3 else ""
            self.notes.append(
                f"step {state.global_step}: the routers of {len(collapsed)} layers use hardly more than the experts that one token needs; share of "
                f"tokens per expert: {', '.join(collapsed[:3])}{more}; try a larger method.router_aux_loss_coef or a smaller learning rate"
            )
            self._tell(self.notes[-1])
