"""The exceptions that a user is meant to read."""

# The exit status where nothing is wrong with the command: run again, it goes on.
TRY_AGAIN = 75


class UserError(Exception):
    """Something that the user can mend, told in one line.

    The message names the culprit (file, image id, annotation id or config key) and the remedy. The `mrcnn` command
    prints it without a traceback and exits with `status`.
    """

    status = 2


class Unreachable(UserError):
    """A network or a store did not do its part, which it may well do the next time."""

    status = TRY_AGAIN
