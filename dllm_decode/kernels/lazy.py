"""Values that are computed when somebody asks for them: what nobody reads costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

Value = TypeVar("Value")

if TYPE_CHECKING:
    from functools import cached_property

    once = cached_property
else:

    class once:
        """A property that is computed when somebody first asks for it.

        What `functools.cached_property` is, without the lock that it takes in Python 3.11 and the
        questions that it asks of the instance: a step reads twenty of them for the first time.

        Args:
            make: computes the value from the instance.

        Examples:
            >>> class Answer:
            ...     @once
            ...     def value(self):
            ...         print("computed")
            ...         return 42
            >>> answer = Answer()
            >>> answer.value, answer.value
            computed
            (42, 42)
        """

        def __init__(self, make: Callable[[Any], Any]) -> None:
            self._make, self._name, self.__doc__ = make, make.__name__, make.__doc__

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            """The value; from then on the instance's own attribute stands in front of this."""
            if instance is None:
                return self
            value = instance.__dict__[self._name] = self._make(instance)
            return value


Record = TypeVar("Record")


def copied(record: Record, **values: Any) -> Record:
    """A frozen dataclass with other values, without the checks that `dataclasses.replace` runs.

    Args:
        record: what is copied; what it has computed of its fields stays behind.
        values: of fields, by name.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Pair:
        ...     one: int
        ...     other: int
        >>> copied(Pair(1, 2), other=3)
        Pair(one=1, other=3)
    """
    twin, own = object.__new__(type(record)), vars(record)
    names = type(record).__dataclass_fields__  # type: ignore[attr-defined]
    if len(own) > len(names):
        own = dict(zip(names, map(own.__getitem__, names), strict=True))
    vars(twin).update(own, **values)
    return twin


class Later(Generic[Value]):
    """A value that is computed when somebody first asks for it, and only once.

    Args:
        make: computes it; forgotten, with all it holds on to, as soon as it has.

    Examples:
        >>> Later(lambda: 6 * 7)()
        42
    """

    __slots__ = ("_make", "_value")

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make: Callable[[], Value] | None = make

    def __call__(self) -> Value:
        """The value, computed if nobody has asked before."""
        if self._make is not None:
            self._value, self._make = self._make(), None
        return self._value


if TYPE_CHECKING:

    def later(make: Callable[[], Value]) -> Value:
        """A `Later` in the place of a field, to type checkers what it becomes."""

else:
    later = Later


class LazyFields:
    """Fields of a frozen dataclass that may be given as `Later`: what nobody reads costs nothing.

    Whoever reads such a field gets the value, not the `Later`; copies made by `but` share it.

    Attributes:
        lazy: names of the fields.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Sum(LazyFields):
        ...     total: int
        ...     lazy = ("total",)
        >>> Sum(Later(lambda: 1 + 2)).total
        3
    """

    lazy: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        own = vars(self)
        own["_later"] = {name: own.pop(name) for name in self.lazy if type(own.get(name)) is Later}

    @classmethod
    def made(cls, waiting: dict[str, Callable[[], Any]], **fields: Any) -> Any:
        """An instance, quicker than by the class: nothing is checked, and no default is made.

        Whatever is left out has the default of its class; one with a factory has to be given.

        Args:
            waiting: what computes the lazy fields that are not given, by name.
            fields: all others.
        """
        twin = object.__new__(cls)
        own = vars(twin)
        own.update(fields)
        own["_later"] = waiting
        return twin

    def __getattr__(self, name: str) -> Any:
        """A field that is not there yet; everything else is found before this is asked."""
        waiting = vars(self).get("_later", {})
        make = waiting.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        if type(make) is not Later:  # from now on the copies share what it gives
            make = waiting[name] = Later(make)
        value = vars(self)[name] = make()
        return value

    def known(self) -> Any:
        """The same, with every field computed: it holds on to nothing that they follow from."""
        for name in self.lazy:
            getattr(self, name)
        vars(self)["_later"] = {}
        return self

    def but(self, **fields: Any) -> Any:
        """A copy with other fields, which computes nothing; `dataclasses.replace` would."""
        twin = object.__new__(type(self))
        own = vars(twin)
        own.update(vars(self))
        own.update(fields)
        if Later in map(type, fields.values()):
            waiting = {name: own.pop(name) for name in fields if type(fields[name]) is Later}
            own["_later"] = own["_later"] | waiting
        return twin
