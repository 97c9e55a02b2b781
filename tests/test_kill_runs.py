"""The short version of `scripts/kill_runs.py`, and that its comparison sees what differs."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
from same_bits import Differ, same_losses

SCRIPTS = Path(__file__).parents[1] / "scripts"
STEPS = 60


def test_a_run_of_two_hosts_that_is_killed_ends_in_the_same_bits(tmp_path):
    """By a SIGKILL while a checkpoint is written and a SIGTERM."""
    out = tmp_path / "out"
    command = [
        sys.executable, str(SCRIPTS / "kill_runs.py"), f"--out={out}", "--kills=1", "--terms=1", f"--steps={STEPS}",
        "--seed=5", f"--config={SCRIPTS / 'tiny_hosts.py'}:rpn",
    ]  # fmt: skip
    told = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert told.returncode == 0, told.stdout + told.stderr
    result = json.loads((out / "kills.json").read_text())
    kinds = sorted(event["what"] for event in result["events"])
    assert re.fullmatch(r"SIGKILL to (one|all), in the writing of a checkpoint", kinds[0])
    assert kinds[1] == "SIGTERM to one"
    assert (result["losses"], result["last"]) == (STEPS, [0, 0])
    assert result["arrays"] > 20
    # A checkpoint was there to go on from.
    assert max(event["step"] for event in result["events"]) >= 10

    file = out / "disturbed" / "metrics.csv"
    with file.open(newline="") as rows:
        loss = next(row["loss"] for row in csv.DictReader(rows) if row["step"] == "7")
    file.write_text(file.read_text().replace(loss, "9.9"))
    with pytest.raises(Differ, match="first at step 7"):
        same_losses(out / "alone", out / "disturbed")
