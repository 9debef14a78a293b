"""Recipes by name. A recipe is a package folder with ``RECIPE`` and the files that go into the image."""

from pupitre.errors import NotFound
from pupitre.images.recipes.desktop import RECIPE as DESKTOP
from pupitre.images.recipes.recipe import Recipe
from pupitre.images.recipes.tiny import RECIPE as TINY

RECIPES = {recipe.id: recipe for recipe in (TINY, DESKTOP)}


def recipe(name: str) -> Recipe:
    """Raises `NotFound`."""
    try:
        return RECIPES[name]
    except KeyError:
        raise NotFound(f"There is no recipe {name}. There are: {', '.join(RECIPES)}.") from None
