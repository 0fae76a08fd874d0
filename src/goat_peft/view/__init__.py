"""Looking at a run: a page that shows which expert does what, and a conversation with the model."""

from .collect import Wishes
from .conversation import Conversation
from .opening import Opened, open_run
from .page import view_run

__all__ = ["Conversation", "Opened", "Wishes", "open_run", "view_run"]
