"""The one exception a user is meant to read."""


class InputError(ValueError):
    """Something a user can mend: the message is one plain sentence naming the file and the fix.

    The command line prints it and exits with code 2; every other exception is a defect of medgen and keeps its
    traceback.
    """
