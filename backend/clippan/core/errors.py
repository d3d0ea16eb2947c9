"""What can go wrong, as one sentence for the user."""

from __future__ import annotations

from typing import Any, Union

from clippan.core.messages import Message


class ClippanError(Exception):
    """A failure with a cause and a remedy, in one sentence that is shown to the user.

    Args:
        sentence: in English, with ``{name}`` where ``values`` go.

    Attributes:
        message: the sentence with its values, which can be translated.
    """

    def __init__(self, sentence: str, /, **values: Any) -> None:
        for name, value in values.items():  # what is quoted may have several lines
            if isinstance(value, str) and not isinstance(value, Message):
                values[name] = " ".join(value.splitlines())
        self.message = sentence if isinstance(sentence, Message) and not values else Message(sentence, **values)
        super().__init__(self.message)


def one_line(error: Union[BaseException, str]) -> str:
    """What an exception or a library says, on one line and without a full stop, to stand inside a sentence."""
    return " ".join(str(error).split()).rstrip(".")


class Cancelled(ClippanError):
    """The user cancelled the job; what that means for what it was writing is said in the sentence."""

    def __init__(self, sentence: str = "Cancelled; nothing was written.") -> None:
        super().__init__(sentence)
