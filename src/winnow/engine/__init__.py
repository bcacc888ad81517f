"""Engine: checkpoints in, text out.   (floor 5 · engine)

    config.py       what a model is: config.json through one gate
    weights.py      tensors in the kernels' layout, and the maps they stand for
    families/       one file per architecture: how its config and tensors are spelled
    checkpoint.py   a model directory or hub id, opened safely
    tokenizer.py    text to token ids and back, streaming included
    convert/        .bin weights, written as safetensors without unpickling; weights packed in a file
    cache.py        keys and values of the positions computed so far, at once or when needed
    model.py        the dense definition, in the order of the act
    sparsity/       predictors, plans, their calibration and their fidelity
    counts.py       what decoding selected, read and waited for
    decode.py       one token through the kernels, with only the neurons it needs
    prefill.py      a prompt, many tokens at a time, from the same packed weights
    sampling.py     from logits to a token
    context/        a past in constant memory: sequences longer than the model's positions
    generate.py     prompt in, tokens and their statistics out
    chat/           conversations: a model's template, and turns that share one cache
    synthetic.py    random models of known shapes
    bench/          engines side by side, interleaved in one run

A checkpoint is opened, loaded and run in that order; `model.py` defines what all the rest must equal.
"""

from winnow.engine.cache import KvCache
from winnow.engine.checkpoint import Checkpoint, DictSource, bundled, find_directory, read_config
from winnow.engine.config import ModelConfig, Rope
from winnow.engine.families import load_weights, parse_config, tensor_shapes
from winnow.engine.generate import Completion, Engine, GenerateOptions, load
from winnow.engine.model import dense_mlp, forward
from winnow.engine.prefill import Prefill
from winnow.engine.sampling import SamplingOptions
from winnow.engine.tokenizer import StreamDecoder, Tokenizer
from winnow.engine.weights import Weights

__all__ = [
    "Checkpoint",
    "Completion",
    "DictSource",
    "Engine",
    "GenerateOptions",
    "KvCache",
    "ModelConfig",
    "Prefill",
    "Rope",
    "SamplingOptions",
    "StreamDecoder",
    "Tokenizer",
    "Weights",
    "bundled",
    "dense_mlp",
    "find_directory",
    "forward",
    "load",
    "load_weights",
    "parse_config",
    "read_config",
    "tensor_shapes",
]
