"""The one exception that means: the user can mend this."""


class HIENetError(Exception):
    """Wrong input. The message is one clear sentence: what, expected, got, remedy.

    The command-line programs print it without a traceback and exit with status 1.
    """
