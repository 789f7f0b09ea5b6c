"""A user's own attack, by the name that it has in a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from inspect import Signature, signature
from pathlib import Path
from typing import Any

import torch

from poise.attacks.aim import Aim, Attack, check_declared
from poise.checks import InputError
from poise.shapes import Images, Labels, Model
from poise.user_code import beside, code_digest, named_in


@dataclass(frozen=True)
class UserAttack:
    """An attack from FILE.py:NAME; its digest makes a changed file another attack.

    What else the attack has, such as its ball or its steps, is had through it.
    """

    name: str  # FILE.py:NAME, without folders
    code: str  # digest of the file and of what it imports beside it
    options: tuple[tuple[str, Any], ...]
    attack: Any = field(repr=False, compare=False)

    @property
    def aim(self) -> Aim:
        """As the attack."""
        aim: Aim = self.attack.aim
        return aim

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "attack":
            raise AttributeError(name)
        return getattr(self.attack, name)

    def __call__(
        self,
        model: Model,
        x: Images,
        y: Labels | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """As the attack."""
        attacked: Images = self.attack(model, x, y, generator=generator)
        return attacked


class UserFactory:
    """What makes the attack FILE.py:NAME of its options; one that is an attack itself takes none.

    The file is run as a Python module: name only code that you trust.

    Raises:
        InputError: no such file or name, or, when it is called, an attack that declares no aim.
    """

    def __init__(self, name: str) -> None:
        with named_in(name, "attack {name}, nor a factory of one") as found:
            self.name, self.found, self.made = name, found, _is_attack(found)
        taken = () if self.made else signature(found).parameters.values()
        self.__signature__ = Signature(list(taken))

    def __call__(self, **options: Any) -> Attack:
        """The attack."""
        try:
            self.__signature__.bind(**options)
        except TypeError as error:
            raise InputError(f"{self.name} takes {self.__signature__}: {error}") from error
        with beside(self.name):
            attack = self.found if self.made else self.found(**options)
        check_declared(attack, self.name)
        path, _, wanted = self.name.rpartition(":")
        given = tuple(sorted(options.items()))
        return UserAttack(f"{Path(path).name}:{wanted}", code_digest(self.name), given, attack)


def _is_attack(found: Any) -> bool:
    """Whether it is called with a model and images, not with options."""
    if isinstance(found, type):
        return False
    return isinstance(getattr(found, "aim", None), Aim) or "model" in signature(found).parameters
