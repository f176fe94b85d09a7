"""Which numbers are valid for a keyword or a hyper-parameter; errors name a valid one."""

from collections.abc import Callable, Mapping
from numbers import Rational, Real
from typing import Any


def fraction(keyword: str, value: Any) -> float:
    """A fraction in [0, 1) as a Python float. Narrower dtypes keep their decimal value.

    A float32 of 0.9 is 0.899999976 in binary; it means 0.9.

    Raises:
        ValueError: It is not such a fraction; the message names a valid one near it.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        number, near = None, 0.9
    else:
        number = float(value) if isinstance(value, float | Rational) else float(str(value))
        near = _nearest_fraction(number)
    if number is None or not 0 <= number < 1:
        meaning = "a fraction of zeros" if keyword == "sparsity" else "a fraction"
        shown = value if isinstance(value, Real) else repr(value)
        raise ValueError(
            f"{keyword} is {shown}: choose {meaning} from 0 up to, not including, 1, "
            f"such as {near:g}"
        )
    return number


def _nearest_fraction(number: float) -> float:
    """A valid fraction near a number; a number from 2 to 99 is read as a percentage."""
    if number < 0:
        return 0.0
    if 2 <= number < 100:
        return round(number / 100, 6)
    return 0.9 if number != number else 0.99


def count(keyword: str, value: Any) -> int:
    """A whole number as a Python int, such as 23, 23.0 or a NumPy integer.

    Raises:
        ValueError: It is not whole; the message names the nearest whole numbers.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{keyword} is {value!r}: choose a whole number, such as 100")
    number = float(value)
    if number.is_integer():
        return int(number)
    if number - number != 0:
        raise ValueError(f"{keyword} is {value}: choose a whole number, such as 100")
    below = int(number // 1)
    raise ValueError(f"{keyword} is {value}: choose a whole number, {below} or {below + 1}")


def positive(keyword: str, value: Any) -> int:
    """A whole number of 1 or more as a Python int.

    Raises:
        ValueError: It is not one.
    """
    number = count(keyword, value)
    if number < 1:
        raise ValueError(f"{keyword} is {number}: choose 1 or more")
    return number


def above_zero(**numbers: float) -> None:
    """Raise ValueError unless all numbers are positive."""
    _check(numbers, lambda x: x > 0, "a positive number")


def zero_or_more(**numbers: float) -> None:
    """Raise ValueError if a number is negative."""
    _check(numbers, lambda x: x >= 0, "0 or more")


def one_or_more(**numbers: float) -> None:
    """Raise ValueError if a number is below 1."""
    _check(numbers, lambda x: x >= 1, "1 or more")


def below_one(**numbers: float) -> None:
    """Raise ValueError unless all numbers lie in [0, 1)."""
    _check(numbers, lambda x: 0 <= x < 1, "a number in [0, 1)")


def _check(numbers: Mapping[str, float], fits: Callable[[float], bool], choice: str) -> None:
    for name, number in numbers.items():
        if not fits(number):
            raise ValueError(f"{name} is {number}: choose {choice}")
