"""The one family of errors that every refusal of this package belongs to."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

SHOWN = 10  # of what is wrong
LARGEST = 10**9 - 1  # of counts: steps have nine digits in the names of checkpoints
SEPARATOR = "\n  "  # between the items of a list, one a line
ODD = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, direction of writing, no UTF-8, ends of lines and paragraphs
HIDDEN = "<hidden>"
# Of an address: who asks, with a password that may hold slashes, and settings, but for those that are no secret.
ADDRESS = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]+:/[^\s'\"]+")
USER = re.compile(r"^([^:]+:/{1,2})(?:[^\s/?@:]*:(?!\d+(?:[/?\s]|$))[^\s?@]*|[^\s/?@]+)@")
PLAIN = "allow_[a-z_]*|anonymous|check_[a-z_]*|[a-z]*_timeout|endpoint_override|region|scheme|tls_[a-z_]*"
SETTING = re.compile(rf"((?<=[?&])(?!(?:{PLAIN})=)[A-Za-z0-9_.-]+=)[^&]+")


def printable(text: str, kept: str = "") -> str:
    """Return text that does nothing to a terminal; files, and names in them, may hold anything.

    Args:
        text: Any.
        kept: Characters that stay as they are, such as the newline; without them the result is one line.
    """
    if text.isascii() and text.isprintable():
        return text
    odd = (c if c in kept or unicodedata.category(c) not in ODD else c.encode("unicode_escape").decode() for c in text)
    return "".join(odd)


def hide_secrets(text: str) -> str:
    """Return text in which the passwords of addresses, before an `@` or in settings after a `?`, are hidden."""
    return ADDRESS.sub(lambda found: SETTING.sub(rf"\1{HIDDEN}", USER.sub(rf"\1{HIDDEN}@", found[0])), text)


def pip_install(extra: str) -> str:
    """Return the command that installs an extra of this package."""
    return f"pip install 'convunext[{extra}]'"


def first_of(items: Sequence[str], separator: str = ", ") -> str:
    """Return the first ten of what is wrong, each on one line, and how many more there are."""
    shown = separator.join(map(printable, items[:SHOWN]))
    more = len(items) - SHOWN
    return shown if more <= 0 else f"{shown}{separator if separator.isspace() else ' '}and {more} more"


class ConvUNextError(Exception):
    """Refuse an input: what it was, why it cannot be used, what to do.

    The command line prints it without a traceback and exits with status 2. The message does nothing to a terminal and
    has line breaks only before the items of a list (`SEPARATOR`); the attributes are as they were given.

    Args:
        subject: The file or argument that is refused.
        reason: What must hold, and what came instead.
        remedy: What the user can do about it.
    """

    def __init__(self, subject: str, reason: str, remedy: str = "") -> None:
        self.subject = subject
        self.reason = reason
        self.remedy = remedy
        super().__init__(_message(f"{printable(subject)}: {reason}", remedy))


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
        self.args = (_message(f"`{name}` {self.reason}", remedy),)


def check_counts(settings: object, *names: str, largest: int = LARGEST) -> None:
    """Raise `ArgumentError` for the first of the named attributes that is below 1 or above the largest."""
    for name in names:
        if getattr(settings, name) < 1:
            raise ArgumentError(name, "must be at least 1", getattr(settings, name))
        if getattr(settings, name) > largest:
            raise ArgumentError(name, f"must be at most {largest}", getattr(settings, name))


class FileError(ConvUNextError):
    """Refuse a file: its path, what is wrong with it, what to do."""


class WeightsError(ConvUNextError, ValueError):
    """Refuse weights that do not fit a model, naming the first that does not."""


class ExportError(ConvUNextError):
    """The artifact does not reproduce its model; partial output is removed. The command's exit status is 1."""


def _message(statement: str, remedy: str) -> str:
    lines = hide_secrets(f"{statement} {remedy}" if remedy else statement).split(SEPARATOR)
    return SEPARATOR.join(map(printable, lines))
