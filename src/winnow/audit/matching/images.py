"""Images: an image from the gradient of a classifier, its label first.   (floor 5 · audit)"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.audit.matching.match import Gradients, Matching, match
from winnow.base.errors import UsageError
from winnow.base.rng import generator


@final
@dataclass(frozen=True, eq=False)
class Image:
    """An image fitted to a gradient: `distance` says how well, `label` what the head's says it is."""

    pixels: Float[Tensor, "channels height width"]
    label: int
    distance: float
    starts: int


def label_of(weight: Float[Tensor, "classes D"], bias: Float[Tensor, " classes"] | None = None) -> int:
    """Return the class of one example from the gradient of the last linear map.

    The bias's is p_c, less 1 where c is the class: the only entry below 0. The weight's has these as factors
    of its rows, and as they add up to 0 the class has the longest. Exact for batch 1; without a bias for
    three classes or more.
    """
    return int(weight.norm(dim=1).argmax()) if bias is None else int(bias.argmin())


def image_attack(
    model: nn.Module,
    gradients: Mapping[str, Tensor],
    shape: tuple[int, int, int],
    *,
    head: str = "head.weight",
    options: Matching | None = None,
    seed: int = 0,
) -> Image:
    """Return the image of `shape` whose cross entropy gives `gradients` of `model`, as near as starts come.

    `model` maps (1, channels, height, width) to logits and has no dropout; `head` is the weight of its last
    linear map. Starts are standard normal. Raises UsageError for a gradient without that map.
    """
    named = {name: p for name, p in model.named_parameters() if name in gradients}
    if head not in named:
        raise UsageError(
            f"{head} is not among the gradients; expected the last linear map's weight. Name it."
        )
    label = label_of(gradients[head], gradients.get(head.removesuffix("weight") + "bias"))
    target = torch.tensor([label])

    def gradient(x: Tensor) -> Gradients:
        loss = nn.functional.cross_entropy(model(x[None]), target)
        return torch.autograd.grad(loss, list(named.values()), create_graph=True)

    rng = generator(seed)
    starts = (torch.randn(shape, generator=rng) for _ in iter(int, 1))
    found = match(gradient, [gradients[name] for name in named], starts, options)
    return Image(found.x, label, found.distance, found.starts)
