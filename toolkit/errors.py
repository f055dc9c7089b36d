"""The errors that the toolkit raises, each with the exit code of the command; the first line of any other error."""


class ToolkitError(Exception):
    """The request could not be met. The message says what was found, what was expected and what to do next."""

    exit_code = 1


class UsageError(ToolkitError, ValueError):
    """The request itself is wrong: an unknown name, an impossible value, arguments that contradict each other."""

    exit_code = 2


class ModelRejected(ToolkitError):
    """A model did not pass the gate (`toolkit.deploy.verify`)."""

    exit_code = 3


def first_line(error: BaseException, *, limit: int = 300) -> str:
    """Return the first line of an error's message, or the error's type if it is empty; at most `limit` characters."""
    return ((str(error).strip() or type(error).__name__).splitlines()[0])[:limit]
