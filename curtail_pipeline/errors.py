"""Errors a user can act on.

Every message is one paragraph that names the offending value and the fix. The command line prints it and exits
with 1; anything that is not a `CurtailError` is a bug and keeps its traceback.
"""

import errno
import re
import sqlite3
from collections.abc import Mapping

SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system says when a disk, a quota or a file is full."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Control characters and line ends."""


class CurtailError(Exception):
    """Base of every error that a user can mend."""


def one_line(text: str) -> str:
    """A text as one line that says what its control characters are."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


class InputError(CurtailError):
    """What a user's file says and cannot be used. The message is one line, whatever names and values the file holds."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class SettingsError(InputError):
    """An experiment file, a command-line value or an experiment home that cannot be used as it is."""


class TraceError(InputError):
    """A trace that is missing, unreadable or implausible."""


class IncompleteError(TraceError):
    """Some of what was asked for could not be had; everything else is stored."""


class CorpusError(InputError):
    """A text source, tokenizer or token shard that cannot be used."""


class LedgerError(CurtailError):
    """Token ranges that would be counted twice, skipped, or that belong to no lease."""


class StoreError(CurtailError):
    """A stored object that is missing, corrupt, or owned by another writer."""


class MessageError(CurtailError):
    """A message between processes that is malformed, or of another version."""


class TrainingError(CurtailError):
    """A model preset, an optimiser state or a training order that cannot be used."""


class MeterError(CurtailError):
    """A counter of energy that is missing, cannot be read, or was reset."""


class FederationError(CurtailError):
    """SuperLink, SuperNode or trainer that cannot be started, reached or trusted."""


class SitesDown(FederationError):
    """Sites that are not there when a segment begins; the others are."""

    def __init__(self, message: str, sites: Mapping[str, str]) -> None:
        super().__init__(message)
        self.sites = dict(sites)
        """Each with the reason."""


class PolicyError(CurtailError):
    """A policy that does not exist or cannot be satisfied."""


FULL_DISK = "no space left on the device; free space and try again: what is committed stays"
"""The one line that is said of it, once per attempt."""


def is_out_of_space(error: BaseException) -> bool:
    """Whether an error comes from a full disk, be it in a file or in a SQLite database."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in SPACE:
            return True
        if isinstance(seen, sqlite3.Error) and getattr(seen, "sqlite_errorname", "") == "SQLITE_FULL":
            return True
        seen = seen.__cause__ or seen.__context__
    return False
