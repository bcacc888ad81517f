"""A corpus of a few pages and a recipe that trains in seconds."""

from pathlib import Path

import pytest
import torch

from winnow.train.recipe import Recipe

TEXT = "the wind takes light chaff and leaves heavy grain for whoever waits by threshing floor"


@pytest.fixture(autouse=True)
def denormals():
    """Training flushes denormals for the whole process; other tests must not see it."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Three books whose names, not their folders, give their order."""
    folder = tmp_path_factory.mktemp("corpus")
    known = TEXT.split()
    for index, name in enumerate(["b/one.txt", "a/two.txt", "three.txt"]):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        words = (known[(i * (7 + index) + i // 11) % len(known)] for i in range(700))
        path.write_text(f"Book {index}\n\n" + " ".join(words) + ". Été, naïve — 風\n", encoding="utf-8")
    (folder / "notes.md").write_text("not a book")
    return folder


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """Awkward on purpose: 5 steps, one of them long, warm-up shorter than the run."""
    return Recipe(
        name="tiny",
        vocab_size=300,
        width=32,
        n_layers=2,
        n_heads=2,
        n_kv_heads=2,
        n_neurons=128,
        n_positions=64,
        short_tokens=16,
        long_every=3,
        batch_tokens=128,
        n_steps=5,
        warmup_steps=2,
        seed=11,
    )
