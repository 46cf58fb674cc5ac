"""Recipes: a build written down. YAML in recipes/, or the user's own.

The keys are `name`, `backend` and `model` (a directory, a Hub or ModelScope id, or the example);
then, where wanted, a one-line `summary`, a `preset`, and `options`: the backend's own, over those
of the preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln import yamls
from edgekiln.errors import UsageError, nearest
from edgekiln.home import project
from edgekiln.options import parse, refuse_idle, specs

if TYPE_CHECKING:
    from edgekiln.backends.base import Backend

_NEEDED = ("name", "backend", "model")
_KEYS = ("name", "summary", "backend", "model", "preset", "options")
_SUFFIXES = (".yaml", ".yml")
_EXAMPLE = "smollm2-135m-instruct"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A build: which model, through which backend, with which preset and options.

    `where` is how messages call the place it came from; `flags` are the options that the command
    line gave, None where this is a recipe as it is written.
    """

    name: str
    backend: str
    model: str
    summary: str = ""
    preset: str = "default"
    options: Mapping[str, Any] = field(default_factory=dict)
    where: str = "options"
    flags: frozenset[str] | None = None

    def parsed(self, backend: Backend) -> Any:
        """The backend's options: the preset's, and this recipe's over them, all checked.

        Raises UsageError for a preset or option that there is not, a value that cannot be, or an
        option that was given and does nothing beside the others.
        """
        presets = backend.presets()
        if self.preset not in presets:
            raise UsageError(
                f"{self.where}: there is no preset {self.preset}",
                remedy=nearest(self.preset, presets),
            )
        values = {**presets[self.preset], **self.options}
        self._refuse_others(backend)
        options: Any = parse(backend.options, values, where=self.where)
        refuse_idle(options, self.options if self.flags is None else self.flags, where=self.where)
        return options

    def _refuse_others(self, backend: Backend) -> None:
        """An option of another backend gets that said: its flag is one that `build` takes."""
        from edgekiln.backends import options_by_backend

        known = specs(backend.options)
        for name in (n for n in self.options if n not in known):
            owners = [b for b, own in options_by_backend().items() if name in {s.name for s in own}]
            if owners:
                close = nearest(name, known)
                every = f"`kiln help build --backend {backend.name}` shows which options it has"
                raise UsageError(
                    f"{self.where}.{name} is for {' and '.join(owners)}, not for {backend.name}",
                    remedy=close if close.startswith("did you mean") else every,
                )


def list_recipes() -> list[str]:
    """The names of the recipes that come with edgekiln."""
    return sorted(p.stem for p in _folder().glob("*.yaml"))


def load_recipe(name: str) -> Recipe:
    """A recipe by its name, or by the path of a YAML file; every part of it checked.

    Raises UsageError with the file and the key of what is wrong.
    """
    file = _find(name)
    recipe = _read(file)
    from edgekiln.backends import load_backend

    backend = load_backend(recipe.backend)
    recipe = _absolute(recipe, backend, file.parent)
    recipe.parsed(backend)
    return recipe


def make_recipe(
    *, recipe: str, backend: str, model: str, preset: str, options: Mapping[str, Any]
) -> Recipe:
    """What a command line asks for: a recipe, if one is named, with the flags over it.

    Without a recipe a backend must be named; the model is then the example's, unless given.
    """
    import dataclasses

    from edgekiln.backends import list_backends, load_backend

    if recipe:
        found = load_recipe(recipe)
        if backend and backend != found.backend:
            raise UsageError(
                f"recipe {recipe} is for the backend {found.backend}, not {backend}",
                remedy="leave out --backend or --recipe",
            )
    elif backend:
        load_backend(backend)
        found = Recipe(name="", backend=backend, model=_EXAMPLE)
    else:
        known = " | ".join(list_backends())
        raise UsageError("which backend?", remedy=f"--backend {known}, or --recipe NAME")
    return dataclasses.replace(
        found,
        model=model or found.model,
        preset=preset or found.preset,
        options={**found.options, **options},
        flags=frozenset(options),
        where="options" if options or preset else found.where,
    )


def _folder() -> Path:
    return project() / "recipes"


def _find(name: str) -> Path:
    given = Path(name)
    if given.suffix in _SUFFIXES or len(given.parts) > 1:
        if not given.is_file():
            raise UsageError(f"there is no recipe file {name}", remedy="give its path")
        return given
    file = _folder() / f"{name}.yaml"
    if not file.is_file():
        raise UsageError(f"there is no recipe {name}", remedy=nearest(name, list_recipes()))
    return file


def _read(file: Path) -> Recipe:
    found = _yaml(file)
    where = f"recipes/{file.name}" if file.parent == _folder() else str(file)
    for key in found:
        if key not in _KEYS:
            raise UsageError(f"{where}: {key} is no key of a recipe", remedy=nearest(key, _KEYS))
    for key in _NEEDED:
        if key not in found:
            raise UsageError(f"{where}: {key} is missing", remedy=f"add a line {key}: …")
    options = found.pop("options", None) or {}
    for key, value in found.items():
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{where}: {key} is {value!r}", remedy="give text")
    if not isinstance(options, dict) or not all(isinstance(k, str) for k in options):
        raise UsageError(
            f"{where}: options is not a list of names and values",
            remedy="below options: write a line name: value for each",
        )
    return Recipe(**found, options=options, where=f"{where}: options")


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yamls.load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        remedy = "mend it; docs/recipes.md shows one"
        raise UsageError(f"{file} is not YAML", why=why[:200], remedy=remedy) from error
    except OSError as error:
        why = error.strerror or str(error)
        remedy = "see that your user may read it"
        raise UsageError(f"cannot read {file}", why=why, remedy=remedy) from error
    if not isinstance(found, dict):
        raise UsageError(f"{file} is not a recipe", remedy=f"give the keys {', '.join(_KEYS)}")
    return found


def _absolute(recipe: Recipe, backend: Backend, folder: Path) -> Recipe:
    """Files that a recipe names are looked for beside it."""
    import dataclasses

    known = specs(backend.options)
    options = {
        name: str(folder.absolute() / value)
        if name in known and known[name].path and isinstance(value, str)
        else value
        for name, value in recipe.options.items()
    }
    return dataclasses.replace(recipe, options=options)
