"""Configuration of the GOAT tuner."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peft.config import PeftConfig

from .inherited import check_inherited
from .integrity import AS_IT_IS, changed_settings, of_settings, refuse_pickle
from .presets import PRESETS
from .registration import METHOD, extend_peft_type

INIT_WEIGHTS = ("goat", "principal", "minor", "random", "lora")
SCALINGS = ("paper", "lora", "rslora")
ROUTERS = ("topk", "softmax", "threshold", "top_p")
ROUTER_STARTS = ("kaiming", "zero")
FORMAT_VERSION = 1


@dataclass
class GoatConfig(PeftConfig):
    """Configuration of [`GoatModel`], GOAT's mixture of LoRA experts (Fan et al., ICML 2025, arXiv 2502.16894).

    Each adapted linear of `n` inputs and `m` outputs gets `num_experts` experts of rank `d = r / num_experts`, a float32 router, and a frozen
    residual that keeps the expected initial output equal to the base's:
    `y = W0 x + sum_i s_i w_i(x) B_i A_i x - (1/E) sum_i s_i B0_i A0_i x`. Every field's help names its equation and a value to start from.

    Raises `ValueError` naming the field, the value and what would work.
    """

    r: int = field(
        default=8,
        metadata={
            "help": "Total rank, shared by all experts: expert rank d = r / num_experts. A multiple of num_experts. Start with 8, or 32."
        },
    )
    num_experts: int = field(default=8, metadata={"help": "Number of experts E. The paper uses 8."})
    top_k: int = field(
        default=2,
        metadata={
            "help": "Experts active for a token, k in w = softmax over the k largest of Wz x. From 1 to num_experts. The paper uses 2."
        },
    )
    router: Literal["topk", "softmax", "threshold", "top_p"] = field(
        default="topk",
        metadata={
            "help": "Which experts a token uses. 'topk': the top_k of largest logit. 'softmax': all of them (HydraLoRA). 'threshold': those whose probability "
            "reaches a learned threshold (AdaMoLE). 'top_p': the fewest whose probabilities sum to top_p. The last two run in plain torch, without "
            "the fused operator. Start with 'topk'."
        },
    )
    top_p: float = field(
        default=0.25,
        metadata={
            "help": "Probability that the experts of router='top_p' reach together. The paper's ablation uses 0.25."
        },
    )
    shared_A: bool = field(
        default=False,
        metadata={
            "help": "One A (d, n) for all experts, each with a B of its own (HydraLoRA). Needs init_weights='lora'. Leave False to start."
        },
    )
    shared_experts: int = field(
        default=0,
        metadata={
            "help": "The first so many experts serve every token with weight 1, and the router chooses among the others (top_k of those). Runs in plain "
            "torch. The paper's ablation found none better; leave 0."
        },
    )
    target_modules: set[str] | list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Names of the linear modules to adapt: a list of name endings, a regular expression, or 'all-linear' (every linear but the output "
            "head), which is what the paper does and what None means. nn.Linear and transformers' Conv1D are supported."
        },
    )
    exclude_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "Names, or a regular expression, of modules not to adapt. Leave None to start."}
    )
    init_weights: bool | Literal["goat", "principal", "minor", "random", "lora"] = field(
        default="goat",
        metadata={
            "help": "How experts start. 'goat' (or True): expert j takes d singular triplets from (j-1) * floor(min(m, n) / E), s B_j A_j = (1/rho) U' S' V'^T, "
            "with the residual of Theorem 3.4. 'principal', 'minor', 'random': other segments, same scale and residual. 'lora': Kaiming A, zero B, "
            "no residual, the initial model equals the base. False: random A and B, for tests. Start with 'goat'."
        },
    )
    init_router: Literal["kaiming", "zero"] = field(
        default="kaiming",
        metadata={
            "help": "How the router starts. 'kaiming': at random, as nn.Linear does. 'zero': every token weighs all routed experts alike, so that the "
            "residual cancels the experts' start token by token, and the initial output is the base's, not only in expectation; needs every expert "
            "active, as with router='softmax'. Start with 'kaiming'."
        },
    )
    scaling: float | Literal["paper", "lora", "rslora"] = field(
        default="paper",
        metadata={
            "help": "The scale s of an expert. 'paper': s = sqrt(3 n eta / d), n = in_features (Theorem 3.5). 'lora': lora_alpha / d (the released code). "
            "'rslora': lora_alpha / sqrt(d). Or a positive number. Start with 'paper'."
        },
    )
    eta: float = field(
        default=1.0,
        metadata={
            "help": "Ratio of the full fine-tuning to the adapter learning rate in scaling='paper'. The paper uses 1, and 0.1 for commonsense."
        },
    )
    rho: float = field(
        default=10.0, metadata={"help": "Experts start with 1/rho of their singular values. The paper uses 10."}
    )
    expert_scaling: Literal["uniform", "singular"] = field(
        default="uniform",
        metadata={
            "help": "'uniform': all experts share s. 'singular' (GOAT-s): s_i = s sqrt(sigma_1 / sigma_i), sigma_i the sum of segment i's singular values; "
            "needs a segment initialisation. Start with 'uniform'."
        },
    )
    lora_alpha: float = field(
        default=16, metadata={"help": "Alpha of scaling='lora' and 'rslora'; 'paper' ignores it. The paper uses 2 r."}
    )
    lora_dropout: float = field(
        default=0.0,
        metadata={
            "help": "Dropout on the experts' input; router and residual see the input itself. The paper uses 0.05."
        },
    )
    router_aux_loss_coef: float = field(
        default=1e-3,
        metadata={
            "help": "Coefficient of the balance loss L_b = sum_i f_i P_i, added to the loss a model returns while training. Start with 1e-3; 0 turns it off."
        },
    )
    router_aux_loss_reduction: Literal["mean", "sum"] = field(
        default="mean",
        metadata={
            "help": "How L_b of the adapted layers are combined: 'mean' does not depend on depth; 'sum' is the released code's. Start with 'mean'."
        },
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata={"help": "Weight stored as (in, out), as in GPT-2's Conv1D. Found out by itself; leave False."},
    )
    bias: Literal["none", "all", "goat_only"] = field(
        default="none",
        metadata={
            "help": "Which biases train: 'none', 'all', or 'goat_only' (those of adapted modules). Start with 'none'."
        },
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules trained in full and saved with the adapter, for example a new classification head."},
    )
    layers_to_transform: list[int] | int | None = field(
        default=None,
        metadata={"help": "Indices of the layers to adapt; None adapts all of them. Needs target_modules as a list."},
    )
    layers_pattern: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Name of the module list layers_to_transform counts in, such as 'layers' or 'h'. Only if it is not found by itself."
        },
    )
    check_base_weights: bool = field(
        default=True,
        metadata={
            "help": "When loading: refuse a base whose weights are not those the adapter was trained on. To load anyway, pass the config "
            "GoatConfig.from_pretrained(path, check_base_weights=False). Not saved: each loading decides."
        },
    )
    check_integrity: bool = field(
        default=True,
        compare=False,
        metadata={
            "help": "When loading: refuse tensors or settings that changed since they were saved. To load anyway, pass the config "
            "GoatConfig.from_pretrained(path, check_integrity=False). Not saved: each loading decides."
        },
    )
    format_version: int | None = field(
        default=None,
        compare=False,
        metadata={
            "help": "Layout of a saved adapter. Written on saving, never set by hand: it says that the tensors exist and need no SVD."
        },
    )
    settings_digest: dict[str, Any] | None = field(
        default=None,
        compare=False,
        metadata={
            "help": "Digests of the settings that decide what the adapter computes. Written on saving, compared on loading, never set by hand."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = extend_peft_type(METHOD.upper())
        if isinstance(self.target_modules, list | tuple):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list | tuple):
            self.exclude_modules = set(self.exclude_modules)
        if self.init_weights is True:
            self.init_weights = "goat"
        self._check()
        self._check_settings_digest()

    def _check_settings_digest(self) -> None:
        """Compare the digests that came with saved settings, once: afterwards they may be changed."""
        saved, self.settings_digest = self.settings_digest, None
        if saved is None or not self.check_integrity:
            return
        for name in changed_settings(self, saved):
            raise ValueError(
                f"GoatConfig.{name}={getattr(self, name)!r}: is not the value that was saved, a bit flipped or somebody changed it; copy adapter_config.json "
                f"again from its source. To load it as it is, {AS_IT_IS}, whose save_pretrained(path) keeps the new value."
            )

    def _check(self) -> None:
        def need(ok: bool, name: str, what: str) -> None:
            if not ok:
                raise ValueError(f"GoatConfig.{name}={getattr(self, name)!r}: {what}.")

        def is_int(value: Any) -> bool:
            return isinstance(value, int) and not isinstance(value, bool)

        def is_number(value: Any) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

        def one_of(name: str, allowed: tuple[str, ...]) -> None:
            need(getattr(self, name) in allowed, name, f"must be one of {', '.join(allowed)}")

        check_inherited(self, need)
        need(is_int(self.num_experts) and self.num_experts >= 1, "num_experts", "must be a whole number of at least 1")
        need(is_int(self.r) and self.r >= 1, "r", "must be a whole number of at least 1")
        need(
            self.r % self.num_experts == 0,
            "r",
            f"must be a multiple of num_experts={self.num_experts}, for example {self._nearest_rank()}",
        )
        need(
            is_int(self.top_k) and 1 <= self.top_k <= self.num_experts,
            "top_k",
            f"must be a whole number from 1 to num_experts={self.num_experts}",
        )
        need(
            self.init_weights is False or (isinstance(self.init_weights, str) and self.init_weights in INIT_WEIGHTS),
            "init_weights",
            f"must be one of {', '.join(INIT_WEIGHTS)}, True or False",
        )
        need(
            self.scaling in SCALINGS if isinstance(self.scaling, str) else is_number(self.scaling) and self.scaling > 0,
            "scaling",
            f"must be one of {', '.join(SCALINGS)} or a positive number",
        )
        for name in ("eta", "rho", "lora_alpha"):
            need(is_number(getattr(self, name)) and getattr(self, name) > 0, name, "must be a positive number")
        need(
            is_number(self.lora_dropout) and 0 <= self.lora_dropout < 1,
            "lora_dropout",
            "must be at least 0 and below 1",
        )
        need(
            is_number(self.router_aux_loss_coef) and self.router_aux_loss_coef >= 0,
            "router_aux_loss_coef",
            "must be 0 or more",
        )
        one_of("router", ROUTERS)
        need(is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        need(isinstance(self.shared_A, bool), "shared_A", "must be true or false")
        need(
            not self.shared_A or not self.uses_residual,
            "shared_A",
            f"one A cannot start from the different segments of init_weights={self.init_weights!r}; set init_weights='lora'",
        )
        need(
            is_int(self.shared_experts) and 0 <= self.shared_experts < self.num_experts,
            "shared_experts",
            f"must be a whole number from 0 to num_experts - 1 = {self.num_experts - 1}",
        )
        need(
            self.router != "topk" or self.top_k <= self.num_experts - self.shared_experts,
            "top_k",
            f"must be at most the {self.num_experts - self.shared_experts} experts that are not shared",
        )
        one_of("init_router", ROUTER_STARTS)
        need(
            self.init_router == "kaiming" or self.active_experts == self.routed_experts,
            "init_router",
            f"where router={self.router!r} takes some of the experts, equal logits would always take the same; set router='softmax'",
        )
        one_of("expert_scaling", ("uniform", "singular"))
        one_of("router_aux_loss_reduction", ("mean", "sum"))
        one_of("bias", ("none", "all", "goat_only"))
        need(
            self.expert_scaling == "uniform" or self.uses_residual,
            "expert_scaling",
            "'singular' needs the singular values of a segment initialisation: set init_weights to goat, principal, minor or random",
        )
        need(
            self.layers_to_transform is None or isinstance(self.target_modules, set | list),
            "layers_to_transform",
            "works with target_modules given as a list of names, not as a string or None",
        )
        need(
            self.layers_pattern is None or self.layers_to_transform is not None,
            "layers_pattern",
            "needs layers_to_transform as well",
        )
        need(
            self.format_version is None or (is_int(self.format_version) and 1 <= self.format_version <= FORMAT_VERSION),
            "format_version",
            f"this version of goat-peft reads adapters up to format {FORMAT_VERSION}; upgrade goat-peft",
        )

    def _nearest_rank(self) -> int:
        return max(1, round(self.r / self.num_experts)) * self.num_experts

    @property
    def expert_rank(self) -> int:
        """Rank d of one expert."""
        return self.r // self.num_experts

    @property
    def routed_experts(self) -> int:
        """Experts that the router chooses among."""
        return self.num_experts - self.shared_experts

    @property
    def active_experts(self) -> int | None:
        """How many of the routed experts each token uses; None where that differs between tokens."""
        if self.router == "topk":
            return self.top_k
        return self.routed_experts if self.router == "softmax" else None

    @property
    def routes_softly(self) -> bool:
        """Whether routing needs `ops.soft` instead of the fast operator."""
        return self.shared_experts > 0 or self.router in ("threshold", "top_p")

    @property
    def uses_residual(self) -> bool:
        """Whether experts start from segments of the SVD, so that a residual is subtracted."""
        return self.init_weights in ("goat", "principal", "minor", "random")

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> GoatConfig:
        """The config of a named preset, with any field overridden.

        Raises `ValueError` if there is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"preset={name!r}: must be one of {', '.join(PRESETS)}.")
        return cls(**PRESETS[name](overrides))

    @classmethod
    def from_pretrained(cls, path: Any, subfolder: str | None = None, **kwargs: Any) -> GoatConfig:  # type: ignore[override]
        """The config in a local folder or on the Hub; `check_base_weights` and `check_integrity` may be given with it.

        Raises `ValueError` for settings that cannot be or have changed, and for a local folder whose only weights are pickled.
        """
        refuse_pickle(Path(path, subfolder or ""))
        return super().from_pretrained(path, subfolder=subfolder, **kwargs)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write `adapter_config.json`, with digests of the settings that decide what the adapter computes."""
        self.settings_digest = of_settings(self)
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.settings_digest = None

    def to_dict(self) -> dict[str, Any]:
        """The fields to save, marked with the layout in which an adapter saved with them is written."""
        saved = super().to_dict() | {"format_version": FORMAT_VERSION}
        del saved["check_base_weights"], saved["check_integrity"]
        if saved["settings_digest"] is None:
            del saved["settings_digest"]
        return saved
