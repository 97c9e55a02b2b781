"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something that the user can mend, told in one line.

    The message names the culprit (file, image id, annotation id or config key) and the remedy. The `mrcnn` command
    prints it without a traceback and exits with 2.
    """
