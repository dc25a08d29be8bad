"""The errors that a user can cause: they end a command without a traceback."""


class UserError(ValueError):
    """One sentence that names the file, key or row, and says what to do. Exit status 1."""


class ConfigError(UserError):
    """A UserError about one key of a method's section; who reads it adds the file and line,
    or the section."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory was too small: Python's, or torch's on CUDA or a CPU."""
    words = ("out of memory", "can't allocate memory", "storage size calculation overflowed",
             "numel: integer multiplication overflow")          # more than 2**63 bytes, or values
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in words))
