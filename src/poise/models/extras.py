"""Packages that only some models need."""

import importlib
from types import ModuleType

from poise.checks import InputError


def require(package: str, *, extra: str, what: str) -> ModuleType:
    """The package, or a message that names the extra of poise that brings it.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, and something that it needs is not
            raise
        raise InputError(f"{what} needs the package {package}: pip install 'poise[{extra}]'") from error
