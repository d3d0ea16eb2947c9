"""Choices among words, with what a list shows for each."""

from __future__ import annotations

import enum


class Choice(enum.Enum):
    """Members are written as ``NAME = "value", "Label"``: the word of scripts and JSON, and the text for people."""

    label: str

    def __new__(cls, value: str, label: str = "") -> Choice:  # called with the value alone to find a member
        member = object.__new__(cls)
        member._value_ = value
        member.label = label
        return member
