"""The coordinates of the residual stream that a recipe asks for, drawn or learned, and the model in them."""

from functools import partial

from suite.learning.rotations import learn_rotations
from suite.models.checkpoint import Checkpoint
from suite.models.turn import Turn
from suite.outside import UnsupportedError, supported
from suite.quantize import generator_for
from suite.recipe import Recipe
from suite.tokens import Tokens
from suite.transforms import LearnedRotations, RotateResidual


def turned_for(
    checkpoint: Checkpoint, recipe: Recipe, calibration: Tokens, *, seed: int, threads: int, exact: bool = False
) -> Checkpoint:
    """The checkpoint in the recipe's residual coordinates: itself where there is none asked for.

    What is outside the blocks is rounded to the types it is stored in, unless it is to be `exact`. Raises
    `UnsupportedError` where there is no rotation of its size.
    """
    turn = turn_for(checkpoint, recipe, calibration, seed=seed, threads=threads)
    return checkpoint if turn is None else checkpoint.turned(turn, exact=exact)


def turn_for(checkpoint: Checkpoint, recipe: Recipe, calibration: Tokens, *, seed: int, threads: int) -> Turn | None:
    """The rotations that the recipe's transforms of place "residual" come to, in order."""
    turn: Turn | None = None
    if not checkpoint.architecture.rotates and any(transform.place == "residual" for transform in recipe.transforms):
        raise UnsupportedError(f"{checkpoint.architecture.name} has norms inside its layers: no rotation passes them")
    for number, transform in enumerate(recipe.transforms):
        if isinstance(transform, LearnedRotations):
            learning = partial(learn_rotations, seed=seed, threads=threads)
            turn = supported(learning, checkpoint, recipe, calibration)
        elif isinstance(transform, RotateResidual):
            generator = generator_for(seed, f"residual/{number}")
            matrix = supported(transform.fit, int(checkpoint.config.hidden_size), generator)
            turn = Turn(matrix if turn is None else turn.matrix @ matrix)
    return turn
