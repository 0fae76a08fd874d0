"""What one forward pass shares between adapted layers: padding, the balance loss, expert usage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from .grouping import GroupLearner
from .together import processes

if TYPE_CHECKING:
    from .layer import GoatLayer


@dataclass(frozen=True)
class ExpertUsage:
    """How one layer's tokens were routed.

    `tokens`: counted tokens. `share` (E): part of the routed slots each expert got, sums to 1. `mean_probability` (E): mean of the full softmax.
    `entropy`: mean entropy of the full softmax over a token's experts, in nats; log(E) at most.
    """

    layer: str
    adapter: str
    tokens: float
    share: list[float]
    mean_probability: list[float]
    entropy: float


@dataclass(frozen=True)
class BalanceTerm:
    """How an adapter's balance loss enters the total: `coefficient * reduction over layers of L_b`."""

    top_k: int | None
    coefficient: float
    reduction: str


@dataclass(frozen=True)
class _Totals:
    """Statistics (layers, 2 E + 2) of the layers of one adapter that have the same k and E."""

    adapter: str
    top_k: int | None
    layers: tuple[str, ...]
    statistics: Tensor


@dataclass(eq=False)
class _Forward:
    """What belongs to one forward of the model: its padding masks, and the statistics of its layers."""

    learns: bool = False
    collecting: bool = False
    cached: bool = False
    mask: Tensor | None = None  # of the tokens an encoder, or a model without one, reads
    decoder_mask: Tensor | None = None
    encoder_output: Tensor | None = None  # what cross-attention reads
    records: dict[tuple[str, int | None], list[tuple[tuple[str, ...], Tensor]]] = field(
        default_factory=dict
    )  # as layers handed them in
    totals: list[_Totals] = field(default_factory=list)  # once it has ended
    delivered: bool = False


@dataclass(eq=False)
class RoutingContext:
    """Shared by all adapted layers of one model; opened when the model's forward starts, closed when it ends.

    Layers add their routing statistics only while it is open, so the second forward of gradient checkpointing, which runs in the backward pass,
    counts nothing twice.
    """

    terms: dict[str, BalanceTerm] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    encoder_layers: set[str] = field(default_factory=set)
    track_in_eval: bool = False
    left_to_trainer: bool = False  # a trainer adds the balance loss to what it makes of the model's log-probabilities

    groups: GroupLearner = field(default_factory=GroupLearner)

    _open: bool = False
    _forward: _Forward = field(default_factory=_Forward)  # the last one
    _learning: _Forward = field(default_factory=_Forward)  # the last one that a backward can follow
    _usage: dict[tuple[str, int | None, tuple[str, ...]], Tensor] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles carry settings and usage, not the tensors of one forward, which hold its graph."""
        return self.__dict__ | {"_forward": _Forward(), "_learning": _Forward(), "_open": False}

    # ---- the life of one forward -------------------------------------------------------------------------------------------------------

    def begin(self, training: bool, inputs: dict[str, Any], is_encoder_decoder: bool) -> None:
        """Open for one forward of the whole model with these arguments."""
        mask = decoder_mask = _as_mask(inputs.get("attention_mask"))
        encoder_output = None
        if is_encoder_decoder:
            decoder_mask = _as_mask(inputs.get("decoder_attention_mask"))
            labels = _as_matrix(inputs.get("labels"))
            if decoder_mask is None and labels is not None:
                decoder_mask = labels.ne(-100)  # the decoder reads the labels, shifted
            given = inputs.get("encoder_outputs")
            encoder_output = given[0] if given is not None else None
        self.groups.begin()
        self._open = True
        self._forward = _Forward(
            learns=training and torch.is_grad_enabled(),
            collecting=training or self.track_in_eval,
            cached=inputs.get("past_key_values") is not None,
            mask=mask,
            decoder_mask=decoder_mask,
            encoder_output=encoder_output,
        )
        if (
            self._forward.learns or not training
        ):  # some trainers look at the model in between, without gradients, for their metrics
            self._learning = self._forward

    def leave_encoder(self, output: Tensor | None) -> None:
        """The encoder ended; `output` (batch, length, width) is what cross-attention will read."""
        if self._open:
            self._forward.encoder_output = output

    def end(self) -> None:
        """Close, and add this forward's statistics to the usage so far."""
        if not self._open:
            return
        self._open = False
        unfetched = self.groups.end()
        forward = self._forward
        forward.mask = forward.decoder_mask = forward.encoder_output = None
        forward.totals = _add_up(forward.records, unfetched)
        forward.records = {}
        for total in forward.totals:
            self._count((total.adapter, total.top_k, total.layers), total.statistics.detach())

    def _count(self, key: tuple[str, int | None, tuple[str, ...]], added: Tensor) -> None:
        """Add to the usage, in place, so that a CUDA graph captured now goes on counting when it is replayed."""
        known = self._usage.get(key)
        if known is None:
            if added.is_cuda and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "A CUDA graph can be captured once the model has run a few times as it will run in the graph."
                )
            with torch.inference_mode(False):  # a tensor of that mode could be written in no other
                self._usage[key] = added.clone()
        elif torch.compiler.is_compiling() or known.is_inference():
            self._usage[key] = known + added
        else:
            known.add_(added)

    # ---- what a layer asks for ---------------------------------------------------------------------------------------------------------

    def saw(self, layer: GoatLayer, x: Tensor) -> None:
        """`layer` is called with x; see `grouping`."""
        if self._open:
            self.groups.saw(layer, x)

    @property
    def is_open(self) -> bool:
        """Whether a forward of the whole model is under way."""
        return self._open

    @property
    def collects(self) -> bool:
        """Whether layers should hand in routing statistics now."""
        return self._open and self._forward.collecting

    def token_mask(self, x: Tensor, layer: str) -> Tensor | None:
        """Which tokens of the input `x` (..., n) of `layer` are not padding, flat; None where all count or no mask fits its shape."""
        if not self._open:
            return None
        forward = self._forward
        in_encoder = layer in self.encoder_layers or x is forward.encoder_output
        mask = forward.mask if in_encoder else forward.decoder_mask
        if mask is None:
            return None
        if x.shape[:-1] == mask.shape or (x.dim() == 2 and x.shape[0] == mask.numel()):
            return mask.reshape(-1)
        if forward.cached and x.dim() == 3 and x.shape[0] == mask.shape[0] and x.shape[1] < mask.shape[1]:
            return mask[:, -x.shape[1] :].reshape(-1)
        return None

    def add(self, layers: tuple[str, ...], adapter: str, top_k: int | None, statistics: Tensor) -> None:
        """Hand in the statistics (N, blocks, 2 E + 2) of one call of N layers, see `ops.routed_linears`."""
        if self._forward.learns and not torch.is_grad_enabled() and self._coefficient(adapter) > 0:
            raise RuntimeError(
                "Reentrant gradient checkpointing runs layers without a graph, so the balance loss would have no gradient. Use "
                "gradient_checkpointing_kwargs={'use_reentrant': False}, or GoatConfig(router_aux_loss_coef=0)."
            )
        self._forward.records.setdefault((adapter, top_k), []).append((layers, statistics))

    def forget(self, adapter: str) -> None:
        """Drop what is known of a deleted adapter."""
        self.terms.pop(adapter, None)
        for forward in (self._forward, self._learning):
            forward.totals = [total for total in forward.totals if total.adapter != adapter]
        for key in [key for key in self._usage if key[0] == adapter]:
            del self._usage[key]

    def mark_delivered(self) -> None:
        """The model's output carries the balance loss of this forward."""
        self._forward.delivered = True

    # ---- the balance loss --------------------------------------------------------------------------------------------------------------

    def _coefficient(self, adapter: str) -> float:
        return self.terms[adapter].coefficient if adapter in self.terms else 0.0

    def undelivered_loss(self) -> Tensor | None:
        """The weighted balance loss of the last forward that a backward can follow; None if the model's output carries it."""
        return None if self._learning.delivered else self._balance_loss(self._learning, weighted=True)

    def balance_loss(self, weighted: bool) -> Tensor | None:
        """The balance loss of the last forward, summed over adapters; None if there was none. `weighted` multiplies by the coefficients."""
        return self._balance_loss(self._forward, weighted)

    def _balance_loss(self, forward: _Forward, weighted: bool) -> Tensor | None:
        total: Tensor | None = None
        layers: dict[str, list[Tensor]] = defaultdict(list)
        for part in forward.totals:
            layers[part.adapter].append(layer_balance_loss(part.statistics, part.top_k))
        for adapter, values in layers.items():
            joined = torch.cat(values)
            term = self.terms[adapter]
            value = joined.sum() if term.reduction == "sum" else joined.mean()
            value = value * term.coefficient if weighted else value
            total = value if total is None else total + value
        return total

    # ---- expert usage ------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """Collect statistics in eval mode too."""
        before, self.track_in_eval = self.track_in_eval, True
        try:
            yield
        finally:
            self.track_in_eval = before

    def usage(self, all_processes: bool = False) -> list[ExpertUsage]:
        """Usage since the last reset, one row per layer and adapter that saw tokens, in the model's order; of this process, or of all, which then must all ask."""
        found: list[Any] = [{key: stacked.double().cpu() for key, stacked in self._usage.items()}]
        if all_processes and processes() > 1:
            found = found * processes()
            distributed.all_gather_object(found, found[0])
        totals: dict[tuple[str, str], Tensor] = {}
        for (adapter, _, layers), stacked in (item for part in found for item in part.items()):
            for layer, row in zip(layers, stacked, strict=True):
                totals[adapter, layer] = totals[adapter, layer] + row if (adapter, layer) in totals else row
        order = {layer: position for position, layer in enumerate(self.layers)}
        return [
            _usage_row(layer, adapter, totals[adapter, layer])
            for adapter, layer in sorted(totals, key=lambda k: (k[0], order[k[1]]))
            if totals[adapter, layer][-1] > 0
        ]

    def reset_usage(self) -> None:
        """Forget the usage so far."""
        with torch.inference_mode():  # in which every tensor may be written
            for known in self._usage.values():
                known.zero_()  # not dropped: captured graphs count there


def layer_balance_loss(statistics: Tensor, top_k: int | None) -> Tensor:
    """`L_b = sum_i f_i P_i` of each row of statistics (layers, 2 E + 2): `f_i = E / (k T) count_i`, `P_i = sum p_i / T`; returns (layers,).

    Without a fixed k (None), the number of routed slots stands in for `k T`, which it equals where there is one.
    """
    num_experts = (statistics.shape[-1] - 2) // 2
    tokens = statistics[:, -1].detach().clamp_min(1)
    counts = statistics[:, num_experts : 2 * num_experts].detach()
    if top_k is None:
        f = counts * num_experts / counts.sum(-1, keepdim=True).clamp_min(1)
    else:
        f = counts * (num_experts / top_k) / tokens[:, None]
    return (f * statistics[:, :num_experts]).sum(-1) / tokens


def _as_matrix(value: Any) -> Tensor | None:
    """A (batch, length) tensor, or None for anything else."""
    return value if isinstance(value, Tensor) and value.dim() == 2 else None


def _as_mask(value: Any) -> Tensor | None:
    """Which tokens of a (batch, length) mask count: those with any number but 0; None for anything else."""
    mask = _as_matrix(value)
    return mask if mask is None or mask.dtype == torch.bool else mask.ne(0)


def _add_up(
    records: dict[tuple[str, int | None], list[tuple[tuple[str, ...], Tensor]]], unfetched: set[str]
) -> list[_Totals]:
    """Sum what layers handed in over blocks of tokens, all layers of the same shape at once, less members whose group's work was not used."""
    found = []
    for (adapter, top_k), handed in records.items():
        rows = [_used(layers, row, unfetched) for layers, row in handed]
        for same in _of_one_shape(rows):
            device = same[0][1].device  # layers may live on several devices
            names = tuple(name for layers, _ in same for name in layers)
            found.append(_Totals(adapter, top_k, names, torch.cat([row.to(device) for _, row in same]).sum(1)))
    return found


def _of_one_shape(rows: list[tuple[tuple[str, ...], Tensor]]) -> list[list[tuple[tuple[str, ...], Tensor]]]:
    """The rows in groups of equal `shape[1:]`. Shapes are compared, never hashed: a hash would tie a compiled graph to one number of tokens."""
    groups: list[list[tuple[tuple[str, ...], Tensor]]] = []
    for layers, row in rows:
        group = next((group for group in groups if group[0][1].shape[1:] == row.shape[1:]), None)
        if group is None:
            groups.append(group := [])
        group.append((layers, row))
    return groups


def _used(layers: tuple[str, ...], row: Tensor, unfetched: set[str]) -> tuple[tuple[str, ...], Tensor]:
    if len(layers) == 1 or not unfetched & set(layers):
        return layers, row
    kept = [index for index, layer in enumerate(layers) if layer not in unfetched]
    return tuple(layers[index] for index in kept), row[kept]


def _usage_row(layer: str, adapter: str, row: Tensor) -> ExpertUsage:
    num_experts = (row.numel() - 2) // 2
    tokens = row[-1].item()
    counts = row[num_experts : 2 * num_experts]
    return ExpertUsage(
        layer=layer,
        adapter=adapter,
        tokens=tokens,
        share=(counts / counts.sum().clamp_min(1)).tolist(),
        mean_probability=(row[:num_experts] / max(tokens, 1)).tolist(),
        entropy=(row[-2] / max(tokens, 1)).item(),
    )
