"""Ctrl-C in a calibration, and the same command again."""

import signal
import subprocess
import sys

from tests.cli import checkpoint

COMMAND = "import sys; from winnow.cli import main; sys.exit(main())"


def test_an_interrupted_calibration_says_how_to_go_on_and_goes_on(tmp_path):
    model, text = checkpoint.write(tmp_path / "tiny"), tmp_path / "text.txt"
    text.write_text(checkpoint.text(2500, seed=1))
    line = [sys.executable, "-c", COMMAND, "calibrate", str(model), "--text", str(text), "--threads", "1"]
    line += ["--target-kld", "0.1"]
    plan, partial = model / "winnow-plan.safetensors", model / "winnow-plan.safetensors.partial"
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for said in process.stderr:  # until the first stage is finished
            if said.startswith(b"fitting predictors"):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert f"{partial} keeps what is finished; the same command goes on from there." in err.decode()
    assert b"Traceback" not in err
    assert not plan.exists()
    assert (partial / "observed.safetensors").is_file()

    other = [*line, "--predictor", "svd"]
    refused = subprocess.run(other, capture_output=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert b"differs in predictor (auto, now svd)" in refused.stderr

    done = subprocess.run(line, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert plan.is_file()
    assert not partial.exists()
