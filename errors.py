"""The one exception that stands for a user's mistake, so that a script can tell it from a bug of ours."""


class UserError(Exception):
    """One sentence that names what is wrong and what to do; `cli.run` prints it and exits with code 2."""
