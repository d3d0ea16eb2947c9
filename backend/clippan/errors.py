"""What can go wrong, as one sentence for the user."""


class ClippanError(Exception):
    """A failure with a cause and a remedy, in one sentence that is shown to the user as it is."""


class Cancelled(ClippanError):
    """The user cancelled the job; nothing was written."""

    def __init__(self) -> None:
        super().__init__("Cancelled; nothing was written.")
