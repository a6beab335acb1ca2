"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: the message says what, where, and what is allowed.

    Entry points print the message as a single line and exit with status 2.
    """


class VerdictError(UserError, ValueError):
    """A verdict that cannot be taken: an attack or a model breaks a rule; the message names the example."""
