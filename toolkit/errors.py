"""Every error that the toolkit raises on purpose, each with the exit code of the command that meets it."""


class ToolkitError(Exception):
    """The request could not be met. The message says what was found, what was expected and what to do next."""

    exit_code = 1


class UsageError(ToolkitError, ValueError):
    """The request itself is wrong: an unknown name, an impossible value, arguments that contradict each other."""

    exit_code = 2


class ModelRejected(ToolkitError):
    """A model did not pass the gate (`toolkit.deploy.verify`)."""

    exit_code = 3
