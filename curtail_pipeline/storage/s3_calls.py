"""Requests to an S3 server: one client per process, bounded retries, and errors a user can act on.

The client is boto3's. Measured against obstore 0.12.1 (256 MiB in 16 MiB parts to moto's server on loopback, 2 cores,
2026-11-26): 0.40 and 0.37 s of CPU up, 0.20 and 0.19 s down, so that weights cost the same; a small request costs 1.8
and 0.3 ms. boto3 has profiles, roles and pre-signed addresses as Dagster's S3 resource has them, is there already, and
has no threads of its own, which a supervisor that forks must not have.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.store import NotStored, StoreUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

PATIENCE_S = 60.0
"""How long a request is tried again."""
CONNECT_S, READ_S = 5.0, 30.0
_PASSING = {408, 425, 429}
"""Statuses below 500 that another try may not get."""
_RETRIED = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "ThrottlingException"}
_RETRIED |= {"ConditionalRequestConflict", "OperationAborted", "RequestTimeTooSlow"}


class Place(NamedTuple):
    """`s3://bucket/prefix`."""

    bucket: str
    prefix: str
    """Without slashes at its ends; empty for a whole bucket."""

    @classmethod
    def parse(cls, uri: str) -> "Place":
        """
        Raises:
            StoreError: it names no bucket, or a prefix that is no relative path.
        """
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        parts = [part for part in prefix.split("/") if part]
        if not uri.startswith("s3://") or not bucket or {".", ".."} & set(parts):
            raise StoreError(f"{uri!r} is not the address of a store; write s3://bucket/prefix")
        return cls(bucket, "/".join(parts))

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


class Calls:
    """Makes requests of one bucket.

    Args:
        connect: makes a client; boto3's own way (environment, profile, instance role) when not given.
        patience_s: how long a request that fails for a passing reason is tried again.
    """

    def __init__(self, place: Place, connect: "Callable[[], S3Client] | None", patience_s: float) -> None:
        self.place, self._patience_s = place, patience_s
        self._connect = connect or connect_from_environment
        self._client: S3Client | None = None
        self._pid = 0

    @property
    def client(self) -> "S3Client":
        """This process's: one that was forked must not use its parent's connections."""
        if self._client is None or self._pid != os.getpid():
            self._client, self._pid = self._connect(), os.getpid()
        return self._client

    def of(self, what: str, do: "Callable[[S3Client], T]") -> T:
        """The answer of a request, tried again while it fails for a passing reason.

        Args:
            what: the object or what else is asked for, for errors.

        Raises:
            NotStored: there is no such object.
            StoreUnavailable: no answer, or none but server errors, for `patience_s`.
            StoreError: it was refused; says why and what to do.
        """
        with self._plain(what):
            return trying_again(self._patience_s, passes)(lambda: do(self.client))

    @contextmanager
    def _plain(self, what: str) -> Iterator[None]:
        import botocore.exceptions as aws

        where = f"{what} in {self.place.uri}"
        try:
            yield
        except aws.ClientError as error:
            raise self._refusal(where, error) from error
        except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError) as error:
            raise StoreError(
                f"{where}: no credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from error
        except (aws.HTTPClientError, aws.ConnectionError, aws.IncompleteReadError) as error:
            raise StoreUnavailable(
                f"{where}: {self._endpoint} did not answer for {self._patience_s:.0f} s ({_short(error)}); see that it "
                "runs and can be reached, and that AWS_ENDPOINT_URL names it"
            ) from error
        except aws.BotoCoreError as error:
            raise StoreError(f"{where}: {_short(error)}; correct the AWS settings of this machine") from error

    @property
    def _endpoint(self) -> str:
        return self.client.meta.endpoint_url

    def _refusal(self, where: str, error: "ClientErrorLike") -> StoreError:
        code, status = code_of(error), _status(error)
        if code == "NoSuchBucket":
            return StoreError(
                f"{where}: there is no bucket {self.place.bucket!r} at {self._endpoint}; create it or correct the name"
            )
        if status == 404:
            return NotStored(f"{where.replace(' in ', ' is not in the store ', 1)}")
        if is_passing(status, code):
            return StoreUnavailable(
                f"{where}: {self._endpoint} answered {status} {code} for {self._patience_s:.0f} s; try again later"
            )
        if code == "RequestTimeTooSkewed":
            return StoreError(f"{where}: the clock of this machine is off by more than the server allows; set it")
        message = error.response.get("Error", {}).get("Message", "")
        fix = "give credentials that may do this" if status in (400, 401, 403) else "see the server's documentation"
        return StoreError(f"{where}: {self._endpoint} refused with {status} {code} ({_short(message)}); {fix}")


if TYPE_CHECKING:
    from botocore.exceptions import ClientError as ClientErrorLike


def connect_from_environment() -> "S3Client":
    """A client with the usual AWS settings: environment, `~/.aws`, the machine's role."""
    import boto3

    return boto3.session.Session().client("s3", config=client_config())


def make_bucket(place: Place) -> bool:
    """Make the bucket; False where it is there.

    Raises:
        StoreError: the server refuses, or does not answer.
    """
    import botocore.exceptions as aws

    calls = Calls(place, None, PATIENCE_S)
    try:
        calls.of("the bucket", lambda client: client.create_bucket(Bucket=place.bucket))
    except StoreError as error:
        cause = error.__cause__
        if isinstance(cause, aws.ClientError) and code_of(cause) in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            return False
        raise
    return True


def client_config() -> "BotoConfig":
    """What requests of a store rely on, whoever makes the client.

    Payloads are signed, so that the server refuses what was damaged on its way; the checksums that boto3 would add are
    left out, since other makes of server do not know them. Retries are `Calls`'.
    """
    from botocore.config import Config

    return Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"total_max_attempts": 1},
        max_pool_connections=16,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"payload_signing_enabled": True},
    )


if TYPE_CHECKING:
    from botocore.config import Config as BotoConfig


def trying_again(patience_s: float, passes: Callable[[BaseException], bool]) -> Retrying:
    """How a request is tried again for so long after it first failed, while what it fails for `passes`; else its own
    error is raised. What a request takes before it fails, as with a large file, does not count."""
    begun = 0.0

    def impatient(state: RetryCallState) -> bool:
        nonlocal begun
        failed = state.outcome_timestamp or 0.0
        if state.attempt_number == 1:
            begun = failed
        return failed - begun >= patience_s

    return Retrying(
        stop=impatient,
        wait=wait_random_exponential(multiplier=0.2, max=4),
        retry=retry_if_exception(passes),
        reraise=True,
    )


def is_passing(status: int, code: str) -> bool:
    """Whether a refusal is for a passing reason: a server that has too much to do, or a line that was too slow, for
    which S3 has a status of 400 and the code RequestTimeout."""
    return status >= 500 or status in _PASSING or code in _RETRIED


def passes(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    import botocore.exceptions as aws

    if isinstance(error, aws.ClientError):
        return is_passing(_status(error), code_of(error))
    return isinstance(error, aws.HTTPClientError | aws.ConnectionError | aws.IncompleteReadError)


def code_of(error: "ClientErrorLike") -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: "ClientErrorLike") -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _short(error: object) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
