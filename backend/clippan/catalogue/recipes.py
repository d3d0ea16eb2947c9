"""The recipes of trainings that come with CLIPPan: YAML files in ``resources/recipes/``, named without the ending."""

from __future__ import annotations

from pathlib import Path

from clippan import resources
from clippan.core.errors import ClippanError

RECIPES = {path.stem: path for path in sorted((resources() / "recipes").glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of the recipe with this name, or this file.

    Raises:
        ClippanError: there is no such recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name).expanduser()
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # the text cannot be a path
        pass
    raise ClippanError(
        "There is no recipe {name}; choose one of {known}, or a YAML file.", name=name, known=", ".join(RECIPES)
    )
