"""winnow train: the bundled model from plain-text books.   (floor 8 · cli)"""

import argparse
import dataclasses

from winnow.base.errors import UsageError


def run(arguments: argparse.Namespace) -> int:
    """Train the recipe, or go on with the run in --out, and print the model directory."""
    if arguments.recipe != "pico":
        raise UsageError(f"{arguments.recipe!r} is no recipe; expected pico.")
    from winnow.train.pico import train_pico
    from winnow.train.recipe import Recipe

    recipe = Recipe()
    if arguments.tokens is not None:
        recipe = dataclasses.replace(recipe, n_steps=max(arguments.tokens // recipe.batch_tokens, 1))
    out = train_pico(
        recipe, arguments.corpus, arguments.out, compiled=arguments.compile, quiet=arguments.quiet
    )
    print(out)
    return 0
