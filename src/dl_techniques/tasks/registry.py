"""The tasks. A new one is a folder in `tasks/`, a folder in `training/recipes/` and a line here."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dl_techniques.errors import FileError

if TYPE_CHECKING:
    from dl_techniques.card import ModelCard
    from dl_techniques.tasks.base import Task


@dataclass(frozen=True)
class TaskEntry:
    """Where a task is implemented.

    Attributes:
        room: Name of its folders.
        prefix: Of its classes: `PrefixTask`, `PrefixRecipe` and `PrefixConfig`.
    """

    room: str
    prefix: str

    @property
    def task(self) -> type[Task]:
        """What outputs mean."""
        return _load(f"dl_techniques.tasks.{self.room}.task", f"{self.prefix}Task")

    @property
    def recipe(self) -> Any:
        """What is trained, and on what; see `training.recipe`."""
        return _load(f"dl_techniques.training.recipes.{self.room}.recipe", f"{self.prefix}Recipe")

    @property
    def config(self) -> Any:
        """Settings of the training; importing them takes no time."""
        return _load(f"dl_techniques.training.recipes.{self.room}.settings", f"{self.prefix}Config")


TASKS = {
    "segment": TaskEntry("segmentation", "Segmentation"),
    "restore": TaskEntry("restoration", "Restoration"),
    "denoise": TaskEntry("denoising", "Denoising"),
}


def task_of(card: ModelCard, source: str, default: str | None = None) -> Task:
    """Return the task of a model.

    Args:
        card: Of the model.
        source: The model, for messages.
        default: Name of the task where the card names none.

    Raises:
        FileError: The card names no task, or one that is not known here.
    """
    name = card.task or ("segment" if "classes" in card.details else default)
    if name not in TASKS:
        known = ", ".join(TASKS)
        reason = f"is of task {name!r}; this version knows {known}." if name else "has no card with a task."
        raise FileError(source, reason, "Name the model.keras of a run of `convunext train`.")
    return TASKS[name].task.from_card(card, source)


def _load(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)
