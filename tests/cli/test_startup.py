import subprocess
import sys

import pytest

import winnow
from winnow.cli.parser import COMMANDS

HEAVY = {"torch", "numpy", "rich", "safetensors", "tokenizers", "huggingface_hub", "transformers"}


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh process holds after `code`."""
    code = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import winnow; dir(winnow); winnow.__all__",
        "import winnow.cli; winnow.cli.main(['--help'])",
        "import winnow.cli; winnow.cli.main(['--version'])",
        "import winnow.cli; winnow.cli.main(['generate', '--help'])",
        "import winnow.cli; winnow.cli.main(['generate', '--dtype', 'fp8', 'x'])",
    ],
)
def test_start_imports_nothing_heavy(code):
    assert not modules_after(code) & HEAVY


def test_public_names_are_sorted_and_there():
    assert all(getattr(winnow, name) is not None for name in winnow.__all__)
    assert dir(winnow) == sorted([*winnow.__all__, "__version__"])


def test_version_is_told_by_package_and_command(process):
    ran = process("--version")
    assert (ran.code, ran.out) == (0, f"winnow {winnow.__version__}\n")


def test_unknown_name_lists_what_winnow_offers():
    with pytest.raises(AttributeError, match=r"no attribute 'lode'.*load"):
        _ = winnow.lode


def test_overview_names_every_command(winnow):
    ran = winnow("--help")
    assert ran.code == 0
    assert all(f"\n  {name} " in ran.out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(winnow, command):
    ran = winnow(command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"usage: winnow {command} ")
    assert all(line.strip() for line in ran.out.split("options:")[1].strip().splitlines()[:3])
