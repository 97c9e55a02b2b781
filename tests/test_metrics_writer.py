"""metrics.csv keeps its columns, survives a kill, and is cut where a resumed run begins; so are the event files."""

import csv
import math

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from mrcnn_jax.metrics_writer import MetricsWriter


def rows(workdir) -> list[dict]:
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def events(workdir) -> list[Event]:
    """Every event in the files: each record is a length (8 bytes), its checksum (4), the event and its checksum (4)."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_rows_are_on_disk_at_once_and_columns_never_move(tmp_path):
    writer = MetricsWriter(tmp_path / "run")
    writer.write(10, {"loss": jnp.asarray(1.5), "rate": np.float32(0.1)})
    writer.write(20, {"loss": 1.0, "rate": 0.2})
    writer.write(20, {"box/AP": 0.25})
    writer.write(30, {"rate": 0.2, "loss": math.nan})
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0] == "step,loss,rate,box/AP"
    assert [(row["step"], row["loss"], row["box/AP"]) for row in rows(tmp_path / "run")] == [
        ("10", "1.5", ""), ("20", "1.0", ""), ("20", "", "0.25"), ("30", "nan", "")
    ]  # fmt: skip
    writer.close()


def test_a_number_comes_back_to_the_last_digit(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"x": 1 / 3})
    writer.close()
    assert float(rows(tmp_path)[0]["x"]) == 1 / 3


def test_the_last_value_is_known_to_a_later_process(tmp_path):
    writer = MetricsWriter(tmp_path)
    assert writer.last("loss") == 0
    writer.write(10, {"loss": 3, "box/AP": 0.5})
    writer.write(20, {"loss": 2})
    writer.close()
    writer = MetricsWriter(tmp_path, step=20)
    assert (writer.last("loss"), writer.last("box/AP"), writer.last("nothing")) == (2, 0.5, 0)
    writer.close()


def test_resuming_cuts_what_came_after_the_restored_step(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write(step, {"loss": step})
    writer.close()
    writer = MetricsWriter(tmp_path, step=20)
    assert [row["step"] for row in rows(tmp_path)] == ["10", "20"]
    writer.write(30, {"loss": -1, "new": 7})
    writer.close()
    assert [(row["step"], row["loss"], row["new"]) for row in rows(tmp_path)] == [
        ("10", "10.0", ""), ("20", "20.0", ""), ("30", "-1.0", "7.0")
    ]  # fmt: skip


@pytest.mark.parametrize("tail", ["30", "30,", "30,1.0,2.0,3.0", "x"])
def test_half_a_line_at_the_end_does_no_harm(tmp_path, tail):
    writer = MetricsWriter(tmp_path)
    writer.write(10, {"loss": 1, "rate": 2})
    writer.close()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(tail)
    writer = MetricsWriter(tmp_path, step=10)
    writer.write(20, {"loss": 3, "rate": 4})
    writer.close()
    assert [row["step"] for row in rows(tmp_path)] == ["10", "20"]


def test_event_files_hold_every_scalar_and_the_purge(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(10, {"loss": 1.5, "box/AP": 0.5})
    # On disk before the writer is closed.
    scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert scalars == [(10, "loss", 1.5), (10, "box/AP", 0.5)]
    writer.close()
    writer = MetricsWriter(tmp_path, step=10)
    writer.close()
    # TensorBoard drops what follows the step at which a session starts.
    assert any(e.session_log.status == 1 and e.step == 11 for e in events(tmp_path))
