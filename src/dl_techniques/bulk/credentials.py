"""Passwords in addresses: what is told, logged and stored shows them hidden; what opens a file looks them up."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dl_techniques.errors import HIDDEN, ArgumentError, hide_secrets

Ends = tuple[str, str]  # of an address: up to the bucket or host, and the settings with their "?"
HEAD = re.compile(rf"[^:]*:/{{1,2}}(?:{HIDDEN}@)?[^/?@]*")


@dataclass(frozen=True)
class Credentials:
    """The ends of addresses that hide a secret, as they are shown, and as they were given."""

    given: dict[Ends, Ends] = field(default_factory=dict, repr=False)

    def hide(self, address: str) -> str:
        """Return an address as it is shown, and remember what is hidden.

        Raises:
            ArgumentError: Another address with another secret is shown alike.
        """
        shown = hide_secrets(address)
        if shown != address:
            head, path, settings = _split(shown)
            given, question, secret = address.partition("?")
            ends = given[: len(given) - len(path)], question + secret
            if self.given.setdefault((head, settings), ends) != ends:
                raise ArgumentError("address", "must have one password", shown)
        return shown

    def reveal(self, shown: str) -> str:
        """Return an address as it was given."""
        head, path, settings = _split(shown)
        head, settings = self.given.get((head, settings), (head, settings))
        return head + path + settings

    def censor(self, text: str) -> str:
        """Return what a library says, without secrets."""
        for shown, given in self.given.items():
            for hidden, secret in zip(shown, given, strict=True):
                text = text.replace(secret, hidden) if secret != hidden else text
        return hide_secrets(text)


CREDENTIALS = Credentials()  # of this process


def _split(shown: str) -> tuple[str, str, str]:
    """Return head, path and settings of an address as it is shown."""
    address, question, settings = shown.partition("?")
    found = HEAD.match(address)
    head = found[0] if found else ""
    return head, address[len(head) :], question + settings
