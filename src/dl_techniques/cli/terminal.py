"""Where commands tell what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def terminal() -> Console:
    """Return a console that shows text as it is: names of files and classes may look like markup."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, markup=False)
