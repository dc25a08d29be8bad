"""The one error that a user can cause, and ends a command without a traceback."""


class UserError(ValueError):
    """One sentence that names the file, key or row, and says what to do. Exit status 1."""


class ConfigError(UserError):
    """A UserError about one key of a method's section; who reads it adds the file and line,
    or the section."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
