"""Encoders: texts from the gradients of BERT's family, whose tokens all see each other.   (floor 5 · audit)

task.py    a loss on an encoder: a classification head on the mean of its states
pairs.py   which token may stand where, from spans and from what a layer norm lets through
assign.py  which of them stand in one text, by a relaxation and by exchanges
attack.py  all of these in turn, with a certificate

A causal model's texts grow token by token; an encoder's have to be guessed whole. What helps is the norm
behind the embeddings: a gradient that comes back through it is orthogonal to what went in.
"""

from winnow.audit.encoders.attack import encoder_attack
from winnow.audit.encoders.task import Classifier

__all__ = ["Classifier", "encoder_attack"]
