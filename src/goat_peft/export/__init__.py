"""Export for serving: a routed adapter as a plain LoRA, and what that costs."""

from .job import Exported, Wishes, export

__all__ = ["Exported", "Wishes", "export"]
