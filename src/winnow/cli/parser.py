"""Parser: the commands, and what each takes.   (floor 8 · cli)"""

import argparse
from collections.abc import Sequence

from winnow.cli.audit_options import add_attention, add_gradients, add_privacy, add_timing, add_update
from winnow.cli.data_options import add_lstsq, add_search, add_two_layer
from winnow.cli.line import Command, Group, read_line
from winnow.cli.model_options import (
    add_bench,
    add_calibrate,
    add_chat,
    add_convert,
    add_doctor,
    add_fidelity,
    add_generate,
    add_inspect,
    add_perplexity,
    add_train,
)

PROBLEMS = {
    "lstsq": Command(
        "least squares of matrices in .npy files, with a certificate",
        ("A", "B"),
        add_lstsq,
        "A holds rows x columns, B a right side per row, or several as columns. A is mapped, not loaded: it "
        "may be larger than memory.",
    ),
    "two-layer": Command(
        "fit ReLU(A2 softmax(A1 x)) to B, matrices in .npy files",
        ("A1", "A2", "B"),
        add_two_layer,
        "Minimises 1/2 |ReLU(A2 softmax(A1 x)) - B|^2 + 1/2 |W * (A1 x)|^2, from x = 0; says why it ended.",
    ),
}

AUDITS = {
    "gradients": Command(
        "say what a gradient of MODEL on a text gives away",
        ("[MODEL]",),
        add_gradients,
        "A control that fails makes the audit void, and the exit code 1.",
    ),
    "update": Command("say what an update file gives away", ("FILE",), add_update, "FILE is safetensors."),
    "attention": Command("say which text a file of attention maps gives away", ("[MODEL]",), add_attention),
    "timing": Command(
        "say whether times or active neurons reveal a prompt's topic", ("[MODEL]",), add_timing
    ),
    "privacy": Command(
        "say what noise is worth, to who sees updates and to who sees the final model", (), add_privacy
    ),
}

COMMANDS: dict[str, Command | Group] = {
    "generate": Command(
        "continue a prompt",
        ("[MODEL]", "PROMPT"),
        add_generate,
        "The prompt - is read from standard input; there and in --prompt-file a line break at the end is not "
        "part of it. A prompt that begins with a dash comes last, after --.",
    ),
    "chat": Command(
        "talk with a model, line by line",
        ("[MODEL]",),
        add_chat,
        "Lines are read from the terminal, or from standard input, one message each. A line that ends in a "
        'backslash goes on in the next; """ begins and ends a message of several lines. /help lists the '
        "commands. A model without a chat template continues the text.",
    ),
    "calibrate": Command(
        "make a model's plan: which neurons its tokens need",
        ("[MODEL]",),
        add_calibrate,
        "What is finished is kept beside the plan, in PLAN.partial, until the plan is written: the same "
        "command goes on where it was interrupted.",
    ),
    "fidelity": Command("sparse against dense on a text: what the plan loses", ("[MODEL]",), add_fidelity),
    "perplexity": Command("score a text with every neuron", ("[MODEL]",), add_perplexity),
    "bench": Command("time dense and sparse side by side", ("[MODEL]",), add_bench),
    "inspect": Command("say what a checkpoint and its plan hold", ("[MODEL]",), add_inspect),
    "convert": Command(
        "make safetensors of .bin weights, without unpickling; or pack weights, to be loaded sooner",
        ("SRC", "[DST]"),
        add_convert,
        "SRC is a directory, or a hub id, with pytorch_model.bin; DST a new or empty directory. Code beside "
        "the weights is never copied. With --pack, SRC holds safetensors: its weights are written as the "
        "kernels read them, in the types named, to winnow-packed-....safetensors beside them, or in DST. "
        "Every command finds the one beside the weights if it asks for the same types; --packed names "
        "another. Where the plan beside the weights leaves heads out, they are packed for it.",
    ),
    "doctor": Command("say what this machine offers Winnow", (), add_doctor),
    "search": Command(
        "find the pairs of vectors whose product is large",
        ("[A]", "B"),
        add_search,
        "A and B are .npy files of one vector per row: +-1 as bool, int8 or packed uint64 words, or floats. "
        "With one file, pairs within it. Files are mapped, not read into memory.",
    ),
    "train": Command(
        "train a bundled model from plain-text books",
        ("RECIPE",),
        add_train,
        "RECIPE is pico or pico-llama.",
    ),
    "solve": Group("solve a regression problem, with a certificate", PROBLEMS),
    "audit": Group("say what gradients, updates, attention maps and times give away", AUDITS),
}


def read_command_line(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options of one command line, with `command` and one attribute per word of the command.

    Raises UsageError for what does not parse, SystemExit after ``--help`` and ``--version``.
    """
    return read_line(argv, COMMANDS)
