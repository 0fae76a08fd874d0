"""Families that a new file extends: methods and tasks register themselves under a name."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Generic, Protocol, TypeVar

from ..errors import UserError, closest, first_line

# Entry points of installed packages in this group are modules that register methods and tasks.
PLUGINS = "goat_peft"


class Named(Protocol):
    """What a registry holds: anything with a name."""

    name: str


Entry = TypeVar("Entry", bound=Named)


class Registry(Generic[Entry]):
    """Entries by name; the modules of `package`, and installed plug-ins, are imported at the first look-up, so a new file needs no list.

    Args:
        kind: what an entry is, for messages ("method").
        package: dotted name of the package whose modules register entries.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry] = {}
        self._loaded = False

    def register(self, entry: Entry) -> Entry:
        """Add an entry and return it; a name can be taken only once."""
        if entry.name in self._entries:
            raise ValueError(f"{self.kind} {entry.name!r} is registered twice")
        self._entries[entry.name] = entry
        return entry

    def unregister(self, name: str) -> None:
        """Remove an entry again (for a plug-in or a test that added it)."""
        del self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        self._load()
        try:
            return self._entries[name]
        except KeyError:
            raise UserError(f"{self.kind}={name}: no such {self.kind}; {closest(name, self._entries)}") from None

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._entries)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for plugin in entry_points(group=PLUGINS):
            try:
                plugin.load()
            except Exception as error:
                self._loaded = False  # the next look-up says so again
                raise UserError(
                    f"plug-in {plugin.name} = {plugin.value}: cannot be imported ({first_line(error)}); mend it, or uninstall the package that holds it"
                ) from error
