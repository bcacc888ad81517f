"""winnow audit: verdicts, redaction, exit codes, files that are broken."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Words
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

from tests.cli.conftest import assert_one_line
from winnow.audit.leakage import gradients_of, load_model
from winnow.base.rng import generator
from winnow.cli import main
from winnow.engine.tokenizer import Tokenizer

WORDS = "The wind takes the light chaff away and leaves the heavy grain to those who wait. " * 4


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(WORDS)
    return path


def test_the_bundled_model_gives_its_batch_away_and_the_text_stays_hidden(text, capsys):
    line = ["audit", "gradients", "--text", str(text), "--batch", "2", "--length", "7", "--json"]
    assert main([*line, "--fail-if", "exact_match>0"]) == 1
    out = capsys.readouterr().out
    found = json.loads(out)
    assert (found["verdict"], found["exact_match"]) == ("exposed", 1.0)
    assert (found["controls"]["planted_found"], found["controls"]["noise_found"]) == (True, False)
    assert found["certificate"]["relative_error"] < 1e-4
    assert "wind" not in out
    assert main([*line, "--show-text"]) == 0
    assert any("wind" in each["text"] for each in json.loads(capsys.readouterr().out)["recovered"])


def test_an_update_file_is_read_back(tmp_path, pico, capsys):
    model, tokenizer = load_model(pico), Tokenizer.open(pico)
    texts = [tokenizer.encode(WORDS, special=False)[:9]]
    path = tmp_path / "update.safetensors"
    save_file({n: (-0.1 * g).contiguous() for n, g in gradients_of(model, texts).items()}, path)
    assert main(["audit", "update", str(path), "--base", str(pico), "--show-text"]) == 0
    out = capsys.readouterr().out
    assert "exposed" in out
    assert "wind takes" in out


def test_noise_is_accounted_for_by_who_looks_and_shuts_a_gate(capsys):
    line = ["audit", "privacy", "--noise", "1", "--rate", "0.05", "--steps", "500", "--json"]
    assert main([*line, "--fail-if", "epsilon_server>8"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["certificate"]["epsilon_server"] == pytest.approx(344, abs=0.5)
    assert found["certificate"]["epsilon_final_model"] == pytest.approx(7.524, abs=2e-3)
    assert (found["controls"]["planted_found"], found["controls"]["noise_found"]) == (True, False)
    assert main([*line, "--fail-if", "epsilon_final_model>8"]) == 0


def test_an_update_without_the_configured_noise_is_told(tmp_path, pico, capsys):
    model = load_model(pico)
    given = gradients_of(model, [Tokenizer.open(pico).encode(WORDS, special=False)[:9]])
    save_file({n: g.contiguous() for n, g in given.items()}, tmp_path / "update.safetensors")
    line = ["audit", "privacy", "--noise", "1", "--clip", "1", "--records", "1", "--base", str(pico)]
    assert main([*line, "--update", str(tmp_path / "update.safetensors")]) == 0
    assert "the update holds none" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("audit", 2, "lacks its second word; expected one of gradients, update, attention, timing, privacy"),
        ("audit dreams", 2, "'dreams' is no audit command; expected one of gradients"),
        ("audit gradients", 2, "required: --text"),
        ("audit gradients --text {text} --defence fog", 2, "'fog' is no defence"),
        ("audit gradients --text {text} --method guess", 2, "--method"),
        ("audit gradients --text {text} --fail-if soon", 2, "'soon' is no condition"),
        ("audit gradients --text {text} --length 1", 2, "a text has 1 tokens; expected at least 2"),
        ("audit gradients --text {text} --batch 999", 3, "tokens, expected 23976 for --batch 999"),
        ("audit gradients --text {none}", 3, "cannot be read"),
        ("audit gradients {none} --text {text}", 3, "none.txt"),
        ("audit privacy", 2, "required: --noise"),
        ("audit privacy --noise 0", 2, "noise is 0.0; expected a number above 0"),
        ("audit privacy --noise 1 --rate 1.5", 2, "rate is 1.5; expected a share above 0 and at most 1"),
        ("audit privacy --noise 1 --steps 0", 2, "--steps"),
        ("audit privacy --noise 1 --delta 0", 2, "delta is 0.0; expected a number above 0"),
        ("audit privacy --noise 1 --prior 1", 2, "prior is 1.0; expected a probability"),
        ("audit privacy --noise 1 --clip 1", 2, "clip belongs to an update, and none is given"),
        ("audit privacy --noise 1 --base pico", 2, "--base belongs to --update FILE"),
        ("audit privacy --noise 1 --update {none}", 3, "cannot be read"),
        ("audit privacy --noise 1 --fail-if soon", 2, "is no condition"),
        ("audit update", 2, "FILE is missing"),
        ("audit update {none}", 3, "cannot be read"),
        ("audit update {text}", 3, "is no whole safetensors file"),
        ("audit update {pickle}", 3, "is a pickle or an archive, which is never opened"),
    ],
)
def test_what_cannot_be_audited_is_one_line_and_a_code(line, code, says, text, tmp_path, winnow):
    pickle = tmp_path / "update.pt"
    pickle.write_bytes(b"\x80\x04\x95cbuiltins\nexec\n")
    words = line.format(text=text, none=tmp_path / "none.txt", pickle=pickle).split()
    assert_one_line(winnow(*words), code, says)


def test_nan_in_an_update_is_refused(tmp_path, pico, capsys):
    model = load_model(pico)
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    next(iter(tensors.values())).view(-1)[5] = torch.nan
    save_file(tensors, tmp_path / "update.safetensors")
    assert main(["audit", "update", str(tmp_path / "update.safetensors")]) == 3
    assert "holds NaN or infinity" in capsys.readouterr().err


@pytest.fixture
def encoder(tmp_path) -> Path:
    """Return a directory with a tiny random BERT and a tokenizer of whole words between marks."""
    config = BertConfig(
        vocab_size=211,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    model = BertModel(config)
    rng = generator(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=rng))
    model.save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(set(WORDS.replace(".", "").lower().split()))]
    tokenizer = Words(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("method", ["auto", "matching"])
def test_an_encoders_batch_is_read_between_its_marks(method, encoder, text, capsys):
    line = ["audit", "gradients", str(encoder), "--text", str(text), "--batch", "1", "--length", "7"]
    assert main([*line, "--method", method, "--json", "--show-text"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["exact_match"]) == ("exposed", 1.0)
    assert found["controls"]["planted_found"]
    assert "the wind takes the light" in found["recovered"][0]["text"]
