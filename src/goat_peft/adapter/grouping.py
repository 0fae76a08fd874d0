"""Linears that read the same input compute together: query, key and value; gate and up.

Which linears do is learned by watching one forward: adapted linears called in a row with the very same tensor form a group. From the next forward on
the first of a group computes for all, and the others fetch their output, as long as they are asked with that tensor. If ever they are not, the
group is dissolved; a group is a saving, never a requirement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from goat_peft.ops import MAX_MEMBERS, autocasts

if TYPE_CHECKING:
    from .layer import GoatLayer


class Group:
    """Layers that read the same input, in the order in which they are called."""

    def __init__(self, members: list[GoatLayer]) -> None:
        self.members = members
        self._input: Tensor | None = None
        self._state: object = None
        self._outputs: dict[str, Tensor] = {}
        for layer in members:
            layer.group = self

    def dissolve(self) -> None:
        """Every member computes for itself again."""
        self.forget()
        for layer in self.members:
            layer.group = None

    @property
    def waiting(self) -> set[str]:
        """Names of the members whose outputs nobody fetched."""
        return set(self._outputs)

    def forget(self) -> None:
        """Drop outputs nobody fetched."""
        self._input, self._outputs = None, {}

    def put(self, x: Tensor, outputs: dict[str, Tensor]) -> None:
        """Keep the outputs of the other members for input x."""
        self._input, self._state, self._outputs = x, _state(x), outputs

    def fetch(self, layer: GoatLayer, x: Tensor) -> Tensor | None:
        """The output computed for `layer`, if it was for this very x, as it is now."""
        if self._input is not x or layer.name not in self._outputs or self._state != _state(x):
            return None
        output = self._outputs.pop(layer.name)
        if not self._outputs:
            self._input = None
        return output

    def __getstate__(self) -> dict[str, object]:
        return {"members": self.members, "_input": None, "_state": None, "_outputs": {}}


def _state(x: Tensor) -> tuple:
    """What an output depends on besides x being the same object."""
    if torch.compiler.is_compiling():  # a graph has no versions: what changes in place there is another tensor
        return torch.is_grad_enabled(), autocasts(x)
    return None if x.is_inference() else x._version, torch.is_grad_enabled(), autocasts(x)


def _checkpointing() -> bool:
    """Whether saved tensors are being intercepted, as non-reentrant checkpointing does: a second forward will follow, and must do the same."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


class GroupLearner:
    """Finds groups in the calls of one forward, and sets them up for the next."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._runs: list[list[GoatLayer]] = []
        self._last: Tensor | None = None
        self._watching = True
        self._checkpointed = False

    def begin(self) -> None:
        """A forward starts: use what the last one taught, unless checkpoints may still have to repeat it as it was."""
        for run in [] if self._checkpointed else self._runs:
            if 2 <= len(run) <= MAX_MEMBERS and len({layer.name for layer in run}) == len(run):
                self.groups.append(Group(run))
        self._watching = self._watching and (self._checkpointed or not self._runs)
        self._runs, self._last, self._checkpointed = [], None, False
        for group in self.groups:
            group.forget()

    def end(self) -> set[str]:
        """A forward ended: dissolve the groups whose outputs were not fetched, and name those members."""
        self._last = None
        unfetched: set[str] = set()
        for group in [group for group in self.groups if group.waiting]:
            unfetched |= group.waiting
            group.dissolve()
            self.groups.remove(group)
        return unfetched

    def saw(self, layer: GoatLayer, x: Tensor) -> None:
        """`layer` was called with x."""
        if not self._watching or torch.compiler.is_compiling():
            return
        self._checkpointed = self._checkpointed or _checkpointing()
        if x is self._last:
            self._runs[-1].append(layer)
        else:
            self._runs.append([layer])
        self._last = x

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_last": None, "_runs": []}
