"""What went wrong through what the user gave, as opposed to a fault of the program."""

from __future__ import annotations


class InputError(ValueError):
    """Something given is wrong: an option, a file, a row, an argument.

    The message is one line: what is wrong, where, what would be right. The command line prints it
    and exits with 2; any other exception there is a fault of the program and keeps its traceback.
    """
