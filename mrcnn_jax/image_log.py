"""Which images each step of training saw, for those who want to count them."""

from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int


class ImageLog:
    """Writes `images/from_STEP_host_I_of_N.csv`: a line a step, its number and the ids of this host's images.

    Each start of a run has a file of its own. Steps after the last checkpoint, which a killed run has to repeat, are in
    two files: the later start counts.
    """

    def __init__(self, workdir: Path, step: int, *, enabled: bool):
        self._file = None
        if enabled:
            folder = workdir / "images"
            folder.mkdir(exist_ok=True)
            name = f"from_{step}_host_{jax.process_index()}_of_{jax.process_count()}.csv"
            self._file = (folder / name).open("w", buffering=1)

    def write(self, step: int, image_ids: Int[np.ndarray, " b"]) -> None:
        """One line."""
        if self._file is not None:
            self._file.write(",".join(map(str, (step, *image_ids.tolist()))) + "\n")

    def close(self) -> None:
        """Nothing is written from here on."""
        if self._file is not None:
            self._file.close()
