"""Linears that read the same input compute together: query, key and value; gate and up.

Which linears do is learned by watching one forward: adapted linears called in a row with the very same tensor form a group. From the next forward on
the first of a group computes for all, and the others fetch their output, as long as they are asked with that tensor. If ever they are not, the
group is dissolved; a group is a saving, never a requirement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .layer import GoatLayer

MAX_MEMBERS = 4


class Group:
    """Layers that read the same input, in the order in which they are called."""

    def __init__(self, members: list[GoatLayer]) -> None:
        self.members = members
        self._input: Tensor | None = None
        self._outputs: dict[str, Tensor] = {}
        for layer in members:
            layer.group = self

    def dissolve(self) -> None:
        """Every member computes for itself again."""
        self.forget()
        for layer in self.members:
            layer.group = None

    @property
    def waiting(self) -> bool:
        """Whether outputs have been computed that nobody fetched."""
        return bool(self._outputs)

    def forget(self) -> None:
        """Drop outputs nobody fetched."""
        self._input, self._outputs = None, {}

    def put(self, x: Tensor, outputs: dict[str, Tensor]) -> None:
        """Keep the outputs of the other members for input x."""
        self._input, self._outputs = x, outputs

    def fetch(self, layer: GoatLayer, x: Tensor) -> Tensor | None:
        """The output computed for `layer`, if it was for this very x."""
        if self._input is not x or layer.name not in self._outputs:
            return None
        output = self._outputs.pop(layer.name)
        if not self._outputs:
            self._input = None
        return output

    def __getstate__(self) -> dict[str, object]:
        return {"members": self.members, "_input": None, "_outputs": {}}


class GroupLearner:
    """Finds groups in the calls of one forward, and sets them up for the next."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._runs: list[list[GoatLayer]] = []
        self._last: Tensor | None = None
        self._watching = True

    def begin(self) -> None:
        """A forward starts: use what the last one taught."""
        for run in self._runs:
            if 2 <= len(run) <= MAX_MEMBERS and len({layer.name for layer in run}) == len(run):
                self.groups.append(Group(run))
        self._watching = self._watching and not self._runs
        self._runs, self._last = [], None
        for group in self.groups:
            group.forget()

    def end(self) -> None:
        """A forward ended: dissolve the groups whose outputs were not fetched."""
        self._last = None
        for group in [group for group in self.groups if group.waiting]:
            group.dissolve()
            self.groups.remove(group)

    def saw(self, layer: GoatLayer, x: Tensor) -> None:
        """`layer` was called with x."""
        if not self._watching or torch.compiler.is_compiling():
            return
        if x is self._last:
            self._runs[-1].append(layer)
        else:
            self._runs.append([layer])
        self._last = x

    def reset(self) -> None:
        """Start over, as after a change of adapters."""
        for group in self.groups:
            group.dissolve()
        self.__init__()  # type: ignore[misc]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_last": None, "_runs": []}
