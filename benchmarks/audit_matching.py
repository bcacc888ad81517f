"""Audit by matching: short texts and small images fitted to gradients, with noise beside them.

    python -m benchmarks.audit_matching [TRIALS]

Texts are random tokens in small random GPT-2 and BERT shapes, images standard normal pixels in a small vision
transformer with one block as stock ones are built. A text counts when every token is right, an image when
its mean squared error is below a hundredth of its variance. The negative control is noise of the gradient's
shapes and sizes, which nothing may fit. Seconds are the attack's own.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch
from benchmarks.recorded import machine, record
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from winnow.audit.encoders import Classifier
from winnow.audit.leakage import gradients_of
from winnow.audit.matching import Matching, image_attack, matching_attack
from winnow.base.rng import generator

N_THREADS = 1
TRIALS = 5
VOCABULARY, WIDTH, POSITIONS = 211, 48, 40
CHANNELS, PATCH, CLASSES = 2, 4, 5
TEXTS = (4, 7, 10)  # tokens
SIDES = (8,)  # pixels
IMAGE = Matching(steps=600, restarts=4)
WHOLE = 0.01  # mean squared error of an image that counts, whose pixels have variance 1


class VisionTransformer(nn.Module):
    """Patches, positions, one block and a head on the mean."""

    def __init__(self, side: int) -> None:
        """Build it for images of `side` by `side`."""
        super().__init__()
        self.patches = nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(torch.zeros((side // PATCH) ** 2, WIDTH))
        self.block = nn.TransformerEncoderLayer(WIDTH, 3, 96, 0.0, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images."""
        tokens = self.patches(x).flatten(2).mT + self.places
        return self.head(self.block(tokens).mean(1))


def drawn(model: nn.Module, rng: torch.Generator, spread: float) -> nn.Module:
    """Give `model` weights of `rng`, large enough that attention is not uniform; norms stay near 1."""
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            noise = spread * torch.randn(parameter.shape, generator=rng)
            parameter.copy_(1 + noise if id(parameter) in norms else noise)
    return model.eval()


def gpt2(rng: torch.Generator) -> nn.Module:
    """Return a small causal model."""
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=WIDTH, n_layer=2, n_head=3)
    return drawn(GPT2LMHeadModel(config), rng, 0.15)


def bert(rng: torch.Generator) -> nn.Module:
    """Return a small encoder with a classification head."""
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = BertConfig(
        vocab_size=VOCABULARY, intermediate_size=100, max_position_embeddings=POSITIONS, **sizes
    )
    return Classifier.of(drawn(BertModel(config), rng, 0.15))


def noise_like(given: Mapping[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
    """Return noise of the shapes and sizes of `given`, zero where that is."""
    return {
        name: float(g.square().mean().sqrt()) * torch.randn(g.shape, generator=rng) * (g != 0)
        for name, g in given.items()
    }


def texts(name: str, build: Callable[[torch.Generator], nn.Module], n: int, n_trials: int) -> dict:
    """Fit texts of `n` tokens, and noise in their place."""
    whole, starts, seconds, in_noise = [], [], [], []
    for seed in range(n_trials):
        rng = generator(100 * n + seed)
        model = build(rng)
        text = torch.randint(3, VOCABULARY, (n,), generator=rng).tolist()
        given = gradients_of(model, [text])
        found = matching_attack(model, given)
        whole.append(found.texts == (tuple(text),))
        starts.append(found.n_tried)
        seconds.append(found.seconds)
        if seed == 0:
            in_noise.append(bool(matching_attack(model, noise_like(given, rng)).texts))
    return row(name, f"{n} tokens", whole, starts, seconds, in_noise)


def images(side: int, n_trials: int) -> dict:
    """Fit images, and noise in their place."""
    whole, starts, seconds, in_noise = [], [], [], []
    for seed in range(n_trials):
        rng = generator(100 * side + seed)
        model = drawn(VisionTransformer(side), rng, 0.3)
        image, label = torch.randn(CHANNELS, side, side, generator=rng), seed % CLASSES
        named = dict(model.named_parameters())
        loss = nn.functional.cross_entropy(model(image[None]), torch.tensor([label]))
        given = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        started = time.perf_counter()
        found = image_attack(model, given, tuple(image.shape), options=IMAGE)
        seconds.append(time.perf_counter() - started)
        whole.append(found.label == label and float((found.pixels - image).square().mean()) < WHOLE)
        starts.append(found.starts)
        if seed == 0:
            shape = tuple(image.shape)
            blank = image_attack(model, noise_like(given, rng), shape, options=IMAGE)
            in_noise.append(blank.distance < 1e-2)
    return row("vision transformer", f"{side} x {side} pixels", whole, starts, seconds, in_noise)


def row(
    model: str, size: str, whole: list[bool], starts: list[int], seconds: list[float], in_noise: list[bool]
) -> dict:
    """Return one row of the table."""
    found = {
        "model": model,
        "input": size,
        "trials": len(whole),
        "recovered": statistics.fmean(whole),
        "starts": statistics.median(starts),
        "seconds": statistics.median(seconds),
        "noise_found": any(in_noise),
    }
    print(found, flush=True)
    return found


def main() -> None:
    """Write audit-matching.json."""
    torch.set_num_threads(N_THREADS)
    n_trials = int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS
    rows = [texts("gpt2, 2 layers of 48", gpt2, n, n_trials) for n in TEXTS]
    rows += [texts("bert, 2 layers of 48", bert, n, n_trials) for n in TEXTS]
    rows += [images(side, n_trials) for side in SIDES]
    is_void = any(each["noise_found"] for each in rows)
    record(
        "audit-matching",
        {"machine": machine() | {"threads": N_THREADS}, "rows": rows} | ({"void": True} if is_void else {}),
    )


if __name__ == "__main__":
    main()
