"""Tells a full disk from other failures, however deep a library has wrapped it."""

import errno


def is_full(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is a disk without room (or a quota used up)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # TensorStore, under Orbax, reports the system's message as text inside a ValueError.
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
