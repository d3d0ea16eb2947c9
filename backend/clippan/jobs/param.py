"""What a job may be asked: each parameter is declared once, and all fronts read the declaration.

A request is a frozen dataclass whose fields are made by ``param``. From the declaration come the option of the command
line and its help, the Processing parameter, the check of the value and its sentence, the JSON form, the reference pages
and the strings to translate.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Callable, Optional, TypeVar, Union

from clippan.core.errors import ClippanError
from clippan.core.json import REQUIRED
from clippan.core.messages import Message

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:  # for type checkers alone

    def dataclass_transform(**_: Any) -> Callable[[Any], Any]:
        return lambda decorator: decorator


_KEY = "param"
T = TypeVar("T")


class Kind:
    """What a value means beyond its type: a raster to read, a file to write, a list of bands.

    Attributes:
        writes: whether the value names files that the job writes.
        metavar: a value in a usage line; empty for the parameter's name.
        missing: the sentence where there is no value.
    """

    writes = False
    metavar = ""
    missing = "“{title}” is missing; give a value."

    def inputs(self, value: Any) -> tuple[str, ...]:
        """Files and data sources that a value makes the job read, as far as it tells."""
        return ()

    def outputs(self, value: Any) -> tuple[str, ...]:
        """Files and folders that a value makes the job write."""
        return ()

    def check(self, param: Param, value: Any) -> None:
        """Raises ClippanError, in one sentence, if a value that was given cannot be meant."""

    def choices(self) -> Mapping[str, str]:
        """Known values with their labels, where there are some; others may be possible as well."""
        return {}


@dataclass(frozen=True)
class Param:
    """A parameter of a job.

    Attributes:
        title: its name for people, a noun, in the case of a sentence.
        help: what it does, in one to three sentences.
        default: ``REQUIRED`` where there is none.
        low, high: range of a number, or of each number of a list.
        above: what a number has to be greater than.
        unit: of a number, in the plural, as "pixels".
        example: values as a person may write them, where that is no matter of course.
        advanced: whether it is for few users, and hidden at first.
        proposed: whether QGIS proposes to write it, where it is an output that may be left out.
        positional: whether the command line takes it without an option's name.
        name, type: of the field; ``type`` is that of one value.
        many: whether it is a list of values.
        kind: what it means beyond its type, if anything.
    """

    title: Message
    help: str
    default: Any = REQUIRED
    low: Optional[float] = None
    high: Optional[float] = None
    above: Optional[float] = None
    unit: str = ""
    example: str = ""
    advanced: bool = False
    proposed: bool = False
    positional: bool = False
    name: str = ""
    type: type = str
    many: bool = False
    kind: Kind = dataclasses.field(default_factory=Kind)

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the range of {self.title} is empty")
        object.__setattr__(self, "title", Message(self.title))  # to be translated in the sentences that hold it

    @property
    def required(self) -> bool:
        """Whether a value has to be given."""
        return self.default is REQUIRED

    @property
    def option(self) -> str:
        """How the command line calls it, as ``--tile-size``; what is on by default has an option to turn it off."""
        if self.positional:
            return self.name.upper()
        return f"--{'no-' if self.default is True else ''}{self.name.replace('_', '-')}"

    @property
    def label(self) -> Message:
        """The title with the unit and an example, as a dialog shows it."""
        label = self.title
        if self.unit:
            label = Message("{title} ({unit})", title=label, unit=Message(self.unit))
        return Message("{title}, such as {example}", title=label, example=self.example) if self.example else label

    @property
    def choices(self) -> Mapping[str, str]:
        """Values with their labels, where only these are possible or the kind knows some."""
        if issubclass(self.type, enum.Enum):
            return {item.value: getattr(item, "label", item.value) for item in self.type}
        return self.kind.choices()

    @property
    def constraint(self) -> Optional[Message]:
        """What a number has to be, in words; None if anything goes."""
        if self.low is not None and self.high is not None:
            return Message("between {low} and {high}", low=f"{self.low:g}", high=f"{self.high:g}")
        if self.low is not None:
            return Message("{low} or more", low=f"{self.low:g}")
        if self.above is not None:
            return Message("greater than {above}", above=f"{self.above:g}")
        return None

    def check(self, value: Any) -> None:
        """Raises ClippanError, in one sentence, if the value cannot be meant.

        What is left at its default is not looked at: an empty text or list means that nothing was given.
        """
        empty = not value.strip() if isinstance(value, str) else value in ((), None)
        if self.required and empty:
            raise ClippanError(self.kind.missing, title=self.title)
        if value is None or (value == self.default and not self.required):
            return
        self.kind.check(self, value)
        if self.constraint is not None:
            for number in value if self.many else (value,):
                self._check_range(number)

    def _check_range(self, number: float) -> None:
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        if low <= number <= high if self.above is None else self.above < number < math.inf:
            return
        if self.above is not None:
            key = "“{title}” is {value}; it has to be greater than {above}."
        elif self.high is None:
            key = "“{title}” is {value}; it has to be {low} or more."
        else:
            key = "“{title}” is {value}; it has to be between {low} and {high}."
        limits = {name: getattr(self, name) for name in ("low", "high", "above")}
        given = {name: f"{limit:g}" for name, limit in limits.items() if limit is not None}
        raise ClippanError(key, title=self.title, value=f"{number:g}", **given)


def param(default: Any = REQUIRED, **declared: Any) -> Any:
    """Declares a field of a request; see ``Param`` for the arguments."""
    return dataclasses.field(default=default, metadata={_KEY: Param(default=default, **declared)})


advanced_param = functools.partial(param, advanced=True)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def group(options: type[T]) -> type[T]:
    """Declares a class as parameters that several requests share; they inherit from it."""
    return dataclass(frozen=True)(options)


def inherited(default: Any = REQUIRED, **changes: Any) -> Any:
    """Declares a field anew that a group of options has, with another default, and other ``changes`` if any."""
    return dataclasses.field(default=default, metadata={_KEY: {"default": default, **changes}})


def params(request: type) -> tuple[Param, ...]:
    """The parameters of a request, as dialogs show them: what has to be given, the others, advanced ones, outputs."""
    known: Any = request  # type checkers take a class whose instances have no hash for one that has none itself
    return _params(known)


@functools.cache
def _params(request: Any) -> tuple[Param, ...]:
    hints = typing.get_type_hints(request, include_extras=True)
    # A class's own fields come before those of the groups that it is made of.
    order = [name for owner in request.__mro__ for name in vars(owner).get("__annotations__", {})]
    found = {field.name: _completed(request, field, hints[field.name]) for field in dataclasses.fields(request)}
    listed = [found[name] for name in dict.fromkeys(order) if name in found]
    return tuple(sorted(listed, key=lambda item: (item.kind.writes, not item.required, item.advanced)))


def _completed(request: type, field: dataclasses.Field[Any], hint: Any) -> Param:
    """The declaration of a field, with what its type says."""
    changes: list[Mapping[str, Any]] = []
    declared: Any = field.metadata.get(_KEY)
    for owner in request.__mro__[1:]:
        if isinstance(declared, Param):
            break
        changes.insert(0, declared)
        above = getattr(owner, "__dataclass_fields__", {}).get(field.name)
        declared = above.metadata.get(_KEY) if above else declared
    for change in changes:
        declared = dataclasses.replace(declared, **change)
    kind = Kind()
    if typing.get_origin(hint) is Union:  # Optional
        hint = next(item for item in typing.get_args(hint) if item is not type(None))
    if typing.get_origin(hint) is Annotated:
        hint, kind = typing.get_args(hint)
    many = typing.get_origin(hint) is tuple
    if many:
        hint = typing.get_args(hint)[0]
    return dataclasses.replace(declared, name=field.name, type=hint, many=many, kind=kind)
