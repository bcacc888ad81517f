"""Matching: inputs fitted until their gradient is the observed one.   (floor 5 · audit)

match.py   distances, priors, L-BFGS from several starts
images.py  an image from the gradient of a classifier
texts.py   one short text from the gradient of a small model

The fallback of the audits, and the weakest: it ends in false minima, so that failing to fit says nothing
of safety.
"""

from winnow.audit.matching.images import Image, image_attack, label_of
from winnow.audit.matching.match import Matched, Matching, cosine, match, squared, total_variation
from winnow.audit.matching.texts import matching_attack

__all__ = [
    "Image",
    "Matched",
    "Matching",
    "cosine",
    "image_attack",
    "label_of",
    "match",
    "matching_attack",
    "squared",
    "total_variation",
]
