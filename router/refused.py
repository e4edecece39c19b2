"""A command that could not do what it was asked for: a sentence for its person, and the exit code. Prints nothing."""


class Refused(Exception):
    """The message says why and what to do. `code` is the exit code: that of its kind, unless another one is given."""

    usual_code = 1

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = self.usual_code if code is None else code
