"""winnow train: the bundled models from plain-text books.   (floor 8 · cli)"""

import argparse
import dataclasses

from winnow.base.errors import UsageError


def run(arguments: argparse.Namespace) -> int:
    """Train the recipe, or go on with the run in --out, and print the model directory."""
    from winnow.train.recipe import RECIPES
    from winnow.train.run import run_recipe

    if arguments.recipe not in RECIPES:
        raise UsageError(f"{arguments.recipe!r} is no recipe; expected one of {', '.join(RECIPES)}.")
    recipe = RECIPES[arguments.recipe]
    if arguments.tokens is not None:
        recipe = dataclasses.replace(recipe, n_steps=max(arguments.tokens // recipe.batch_tokens, 1))
    out = run_recipe(
        recipe, arguments.corpus, arguments.out, compiled=arguments.compile, quiet=arguments.quiet
    )
    print(out)
    return 0
