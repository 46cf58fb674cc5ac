"""`kiln recipes`: the ready builds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekiln.report import table

if TYPE_CHECKING:
    pass


def recipes_list() -> None:
    """Print every ready build."""
    from edgekiln.recipe import list_recipes, load_recipe

    recipes = [load_recipe(name) for name in list_recipes()]
    rows = [(r.name, r.backend, r.model, r.summary) for r in recipes]
    print(table(rows, ("recipe", "backend", "model", "what")))


def recipes_show(name: str) -> None:
    """Print a recipe with every option; a star marks those that are not at their default."""
    import dataclasses

    from edgekiln.backends import load_backend
    from edgekiln.recipe import load_recipe

    recipe = load_recipe(name)
    backend = load_backend(recipe.backend)
    options = dataclasses.asdict(recipe.parsed(backend))
    plain = dataclasses.asdict(backend.options())
    print(f"{recipe.name}: {recipe.summary}")
    print(f"backend {recipe.backend}, model {recipe.model}, preset {recipe.preset}\n")
    for key, value in options.items():
        print(f"{'*' if value != plain[key] else ' '} {key}: {value}")
