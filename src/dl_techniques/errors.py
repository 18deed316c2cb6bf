"""The one family of errors that every refusal of this package belongs to."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

SHOWN = 10  # of what is wrong


def printable(text: str) -> str:
    """Return text on one line that does nothing to a terminal; names of files may hold anything."""
    odd = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, direction of writing, no UTF-8, ends of lines and paragraphs
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in odd else c for c in text)


def pip_install(extra: str) -> str:
    """Return the command that installs an extra of this package."""
    return f"pip install 'convunext[{extra}]'"


def first_of(items: Sequence[str], separator: str = ", ") -> str:
    """Return the first ten of what is wrong, and how many more there are."""
    shown = separator.join(items[:SHOWN])
    more = len(items) - SHOWN
    return shown if more <= 0 else f"{shown}{separator if separator.isspace() else ' '}and {more} more"


class ConvUNextError(Exception):
    """Refuse an input: what it was, why it cannot be used, what to do.

    The command line prints it without a traceback and exits with status 2.

    Args:
        subject: The file or argument that is refused.
        reason: What must hold, and what came instead.
        remedy: What the user can do about it.
    """

    def __init__(self, subject: str, reason: str, remedy: str = "") -> None:
        self.subject = subject
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{printable(subject)}: {reason}" + (f" {remedy}" if remedy else ""))

    def __str__(self) -> str:
        return hide_secrets(super().__str__())


class ArgumentError(ConvUNextError, ValueError):
    """Refuse an argument, as in "`depth` must be at least 2. Received: depth=1".

    Args:
        name: Name of the argument.
        rule: What must hold, continuing the sentence that the name opens.
        value: What came.
        remedy: What the user can do about it.
    """

    def __init__(self, name: str, rule: str, value: object, remedy: str = "") -> None:
        super().__init__(name, f"{rule}. Received: {name}={value!r}.", remedy)
        self.args = (f"`{name}` {rule}. Received: {name}={value!r}." + (f" {remedy}" if remedy else ""),)


def check_counts(settings: object, *names: str) -> None:
    """Raise `ArgumentError` for the first of the named attributes that is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise ArgumentError(name, "must be at least 1", getattr(settings, name))


class FileError(ConvUNextError):
    """Refuse a file: its path, what is wrong with it, what to do."""


class WeightsError(ConvUNextError, ValueError):
    """Refuse weights that do not fit a model, naming the first that does not."""


class ExportError(ConvUNextError):
    """The artifact does not reproduce its model; partial output is removed. The command's exit status is 1."""


# === Passwords in addresses ===

HIDDEN = "<hidden>"
# Of an address: who asks, with a password that may hold slashes, and settings, but for those that are no secret.
ADDRESS = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]+:/[^\s'\"]+")
USER = re.compile(r"^([^:]+:/{1,2})(?:[^\s/?@:]*:(?!\d+(?:[/?\s]|$))[^\s?@]*|[^\s/?@]+)@")
PLAIN = "allow_[a-z_]*|anonymous|check_[a-z_]*|[a-z]*_timeout|endpoint_override|region|scheme|tls_[a-z_]*"
SETTING = re.compile(rf"((?<=[?&])(?!(?:{PLAIN})=)[A-Za-z0-9_.-]+=)[^&]+")


def hide_secrets(text: str) -> str:
    """Return text in which the passwords of addresses, before an `@` or in settings after a `?`, are hidden."""
    return ADDRESS.sub(lambda found: SETTING.sub(rf"\1{HIDDEN}", USER.sub(rf"\1{HIDDEN}@", found[0])), text)
