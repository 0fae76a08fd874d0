"""The judge: answers graded by another model through FastChat's single-answer prompts."""

from .endpoint import Endpoint, Failed, Patience, check_url, is_local, is_secret
from .grading import Graded, Tally, grade
from .inputs import Files, Item, find_files, read_items
from .log import Log, open_log
from .summary import fastchat_rows, summarise

__all__ = [
    "Endpoint",
    "Failed",
    "Files",
    "Graded",
    "Item",
    "Log",
    "Patience",
    "Tally",
    "check_url",
    "fastchat_rows",
    "find_files",
    "grade",
    "is_local",
    "is_secret",
    "open_log",
    "read_items",
    "summarise",
]
