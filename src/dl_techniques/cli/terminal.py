"""Where commands tell what happens: nothing that comes from a file does anything to the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dl_techniques.errors import printable

if TYPE_CHECKING:
    from rich.console import Console


def terminal(stderr: bool = False) -> Console:
    """Return a console that shows text as it is: names of files and classes may look like markup.

    What is printed as text, cells of tables included, is one line each, control characters escaped.

    Args:
        stderr: Print there, in panels of the terminal's width.
    """
    from rich.console import Console
    from rich.segment import Segment

    class EscapingConsole(Console):
        def render_str(self, text: str, **settings: Any):
            return super().render_str(printable(text), **settings)

        def render(self, renderable: Any, options: Any = None):
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text, kept="\n"), style, control)

    return EscapingConsole(highlight=False, soft_wrap=not stderr, markup=False, emoji=False, stderr=stderr)


class EscapingStream:
    """A stream of text whose control characters, but ends of lines, are escaped.

    Rich writes to `rich_proxied_file` instead: colours are its own, and it escapes what it is given to print.
    """

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text, kept="\n\t"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextlib.contextmanager
def escaping_streams() -> Iterator[None]:
    """Escape what is printed, logged or warned of in this context, by this package or another."""
    out, err = sys.stdout, sys.stderr
    with contextlib.redirect_stdout(EscapingStream(out)), contextlib.redirect_stderr(EscapingStream(err)):  # type: ignore[type-var]
        yield
