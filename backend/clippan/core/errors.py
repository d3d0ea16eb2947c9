"""What can go wrong, as one sentence for the user."""


class ClippanError(Exception):
    """A failure with a cause and a remedy, in one sentence that is shown to the user as it is."""

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(sentence.splitlines()))  # names and values that it quotes may have several lines


def told(error: BaseException) -> str:
    """What an exception says, on one line and without a full stop, to stand inside a sentence."""
    return " ".join(str(error).split()).rstrip(".")


class Cancelled(ClippanError):
    """The user cancelled the job; what that means for what it was writing is said in the sentence."""

    def __init__(self, sentence: str = "Cancelled; nothing was written.") -> None:
        super().__init__(sentence)
