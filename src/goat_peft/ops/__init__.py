"""The operator of an adapted linear: a readable reference, and the paths that compute the same function fast."""

from .call import MAX_MEMBERS, Base, Experts, Settings
from .function import routed_experts, routed_linears
from .paths import autocasts, path_for, use_path
from .reference import routed_experts_reference
from .soft import SoftSettings, routed_softly

__all__ = [
    "MAX_MEMBERS",
    "Base",
    "Experts",
    "Settings",
    "SoftSettings",
    "autocasts",
    "path_for",
    "routed_experts",
    "routed_experts_reference",
    "routed_linears",
    "routed_softly",
    "use_path",
]
