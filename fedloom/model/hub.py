"""Putting a model's folder on the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from fedloom.errors import UserError, without_secrets

_LONGEST = 200  # characters of the hub's own message that are worth reading


def check_hub(name: str, token: str | None) -> None:
    """Ask the hub who we are, before hours go into what could not be put there.

    Raises:
        UserError: The hub cannot be reached, or does not know the token.
    """
    try:
        HfApi(token=token).whoami()
    except Exception as error:
        raise _explained(name, error, token, "or leave --push_to_hub out") from error


def push(folder: Path, name: str, token: str | None) -> str:
    """Put all files of a folder into a repository, which is made, private, where there is none.

    Args:
        folder: A model's.
        name: Of the repository, owner/model.
        token: That may write there; the hub's own settings (`HF_TOKEN`) where it is empty.

    Returns:
        The address of its page.

    Raises:
        UserError: The hub refuses, or cannot be reached; the folder stands, and can be put there later.
    """
    hub = HfApi(token=token)
    try:
        made = hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Merged by fedloom")
    except Exception as error:
        later = f"{folder} is whole, so this can be done later: hf upload {name} {folder}"
        raise _explained(name, error, token, later) from error
    return str(made)


def _explained(name: str, error: Exception, token: str | None, then: str) -> UserError:
    status = getattr(error.response, "status_code", None) if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403) or isinstance(error, LocalTokenNotFoundError):
        why = "the hub does not let this token write there; make one that may write, and set it as HF_TOKEN"
    elif isinstance(error, OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set; unset it"
    else:
        message = " ".join(str(error).split())[:_LONGEST]
        why = f"the hub cannot be reached or refuses ({type(error).__name__}: {message})"
    return UserError(without_secrets(f"push_to_hub: {name}: {why}; {then}", token))
