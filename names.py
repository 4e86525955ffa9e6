"""Names that users write: another case is the same name, and what is near an unknown one."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def spelled(name: Any, known: Iterable[str]) -> Any:
    """The one of ``known`` that ``name`` is but for case ("signGD" is "signgd"), else ``name``."""
    names = list(known)
    if not isinstance(name, str) or name in names:
        return name
    return next((each for each in names if each.lower() == name.lower()), name)


def near(name: Any, known: Iterable[str]) -> str:
    """ " Did you mean 'signgd'?" where one of ``known`` is near ``name``; empty where none is."""
    by_case = {each.lower(): each for each in known}
    asked = str(name).lower()
    found = difflib.get_close_matches(asked, by_case, n=1, cutoff=0.6)
    found = found or [each for each in by_case if len(asked) > 2 and each.startswith(asked)]
    return f" Did you mean {by_case[found[0]]!r}?" if found else ""


def check_options(owner: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises TypeError for an argument that ``function`` has not, with what is near it."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for name in options:
        if name not in known:
            raise TypeError(
                f"{owner} has no argument {name!r}.{near(name, known)} Its arguments are "
                f"{', '.join(known)}."
            )


def named_arguments(function: Function) -> Function:
    """A function whose error for an argument that it has not names those that it has."""

    @wraps(function)
    def checked(*given: Any, **options: Any) -> Any:
        if options:
            check_options(f"{function.__name__}()", function, options)
        return function(*given, **options)

    return checked  # type: ignore[return-value]
