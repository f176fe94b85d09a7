"""The user's mistakes, as errors of one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from seven_exp.messages import one_line


class ConfigError(ValueError):
    """One or several mistakes of the user; each argument is one message."""

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


@contextmanager
def faults_of_the_user() -> Iterator[None]:
    """Turns a ValueError or OSError raised inside into a ConfigError with the same message."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(one_line(error)) from error
