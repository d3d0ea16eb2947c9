"""What worker and plugin agree on: the protocol's version and the codes of errors."""

PROTOCOL = 2

FAILED = -32000  # a ClippanError: the message is a sentence for the user
CANCELLED = -32001
WRONG_PROTOCOL = -32002
INTERNAL = -32603
UNKNOWN_METHOD = -32601
PARSE_ERROR = -32700
