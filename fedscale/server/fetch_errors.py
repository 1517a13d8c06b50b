"""What the hub clients raise, as one line for people: the key, what is wrong, the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedscale import files
from fedscale.errors import UserError

INSTEAD = "name a local folder, or train teachers here with configs/overlays/offline_teachers.yaml"
HTTP_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")  # what huggingface_hub is built on


@contextmanager
def explained(named: str, revision: str) -> Iterator[None]:
    """Raises UserError for what the hub, the network or the disk did to the block; other errors pass.

    `named` and `revision` are the settings as `key=value`. None of the clients' own text is repeated, so that no
    address or token can get into a log.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        causes = list(_chain(error))
        for cause in causes:
            if line := _of_the_hub(cause, named, revision):
                raise UserError(line) from None
        for cause in causes:
            if isinstance(cause, OSError) and isinstance(full := files.unwritable(_cache(), cause), UserError):
                raise full from None
        if not any(isinstance(one, OSError) or type(one).__module__.split(".")[0] in HTTP_CLIENTS for one in causes):
            raise
        raise UserError(f"{named}: the hub cannot be reached; fetch where there is a network, {INSTEAD}") from None


def _of_the_hub(error: BaseException, named: str, revision: str) -> str | None:
    """The line for an answer of the hub, from the most to the least specific; None when it is none."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):  # means that the hub was not reached
        return None
    if isinstance(error, errors.GatedRepoError):
        return f"{named}: gated; accept its terms on the hub and set HF_TOKEN in the environment"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{named}: no such hub repository (a private one needs HF_TOKEN in the environment)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{revision}: the repository has no such revision"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{named}: the repository lacks the weights or the config that belong to such a model; name another"
    if isinstance(error, errors.HFValidationError):
        return f"{named}: neither a local folder nor a hub id (ORGANISATION/NAME)"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{named}: HF_HUB_OFFLINE is set; unset it where there is a network, {INSTEAD}"
    if isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", "unknown")
        return f"{named}: the hub answered with status {status}; try again later, {INSTEAD}"
    return None


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
