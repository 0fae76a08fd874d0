"""A run on the Hub: what is uploaded, and the card that says what it is."""

from .push import Pushed, push
from .staging import Staged, stage

__all__ = ["Pushed", "Staged", "push", "stage"]
