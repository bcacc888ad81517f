"""Sanity: what is odd about a text or a layer, in plain words.   (floor 5 · engine)"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from winnow.engine.weights import Layer

TOKENS_PER_WIDTH = 8  # fewer rows than this per column leave a covariance, and so a predictor, mostly noise
FAR_LOWER = 0.6  # bytes per token, against plain English
UNKNOWN_SHARE = 0.01
ENGLISH = (
    "The old man came down to the harbour every morning before the sun was up, and looked at the boats. He "
    "knew all of them by name, and most of the people who went out in them, and he would stand there with "
    "his hands in his pockets until the last one had gone. Then he walked home again, and made himself a cup "
    "of tea. Nobody had ever asked him why he did it, and he would not have known what to answer."
)


def text_warnings(
    text: str, ids: Sequence[int], unknown: int | None, encode: Callable[[str], Sequence[int]]
) -> list[str]:
    """Return what speaks against `text` being in a language that the tokenizer was made for.

    `ids` are the text's tokens, `unknown` is the id that stands for what the tokenizer does not know, and
    `encode` gives tokens without special ones.
    """
    if not ids:
        return []
    found = []
    here, english = len(text.encode()) / len(ids), len(ENGLISH) / len(encode(ENGLISH))
    if here < FAR_LOWER * english:
        found.append(
            f"the text has {here:.1f} bytes per token, plain English {english:.1f}: the tokenizer seems not "
            "to be made for its language. A plan holds for text like that it was made on."
        )
    share = 0.0 if unknown is None else sum(i == unknown for i in ids) / len(ids)
    if share > UNKNOWN_SHARE:
        found.append(
            f"{share:.0%} of the text's tokens stand for characters that the tokenizer does not know; "
            "expected text in a language of this model."
        )
    return found


def length_warnings(n_tokens: int, width: int) -> list[str]:
    """Return what speaks against the length of the text that predictors are fitted on."""
    if n_tokens >= TOKENS_PER_WIDTH * width:
        return []
    return [
        f"predictors are fitted on {n_tokens} tokens, a model of width {width} needs some "
        f"{TOKENS_PER_WIDTH * width}: more will be selected than is needed. Give more --text."
    ]


def label_warnings(index: int, layer: Layer, energy: Float[Tensor, "N F"]) -> list[str]:
    """Return what is odd about a layer's neurons, from their squared contributions."""
    fires = energy > 0
    if not bool(fires.any()):
        return [
            f"no neuron of layer {index} contributes anything on this text; it runs dense. Is the checkpoint "
            "whole, and the text in the model's language?"
        ]
    if layer.activation.name == "relu" and bool(fires.all()):
        return [
            f"all neurons of layer {index} fire at every token; there is nothing to leave out, it runs dense."
        ]
    return []
