"""The one exception a user is meant to read."""


class InputError(ValueError):
    """Something a user can mend: the message is one plain sentence naming the file and the fix.

    The command line prints it and exits with code 2; every other exception is a defect of medgen and keeps its
    traceback.
    """


class BoundError(InputError):
    """A figure missed a bound of the config, and the run stopped for it; the command line exits with code 3."""


class ExtrapolationWarning(UserWarning):
    """What is asked for lies beyond the cohort that a model was trained on."""


def reason(error: BaseException) -> str:
    """The first line of what a library says of a failure, short enough for one sentence."""
    return str(error).strip().split("\n")[0][:160]
