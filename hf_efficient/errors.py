"""Errors that a user can fix. The command line prints their message; every other exception keeps its traceback."""


class UserError(ValueError):
    """A wrong or missing argument, file or package: the message says what was given, what is allowed, what to do."""


class UnsupportedModelError(UserError, TypeError):
    """The architecture of a model, or its task head, is not supported."""


class NonFiniteLossError(UserError, ArithmeticError):
    """The loss, the gradients or the weights of a training are NaN or infinite."""


class PushError(UserError, OSError):
    """A push to the Hub that failed: the message says what happened and what to do."""
