"""Parts of messages for people."""

import difflib
from collections.abc import Iterable


def nearest(name: str, choices: Iterable[str]) -> str:
    """Half a sentence for an error message: the closest valid choice, or all of them.

    Args:
        name: What the user wrote.
        choices: The valid names.

    Returns:
        ``did you mean 'x'?`` or ``choose from a, b, c``.
    """
    names = sorted(choices)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(names)}"


def one_line(error: object) -> str:
    """What an error says, on one line; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def capital(words: str) -> str:
    """Words that begin a sentence."""
    return words[:1].upper() + words[1:]
