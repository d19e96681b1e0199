"""The one error users are meant to read."""


class InputError(ValueError):
    """Bad input from outside: a file, an option, a message.

    The text is one sentence that says what was wrong, where, and what to do.
    """
