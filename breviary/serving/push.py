"""Uploads an exported folder to the hub, where the user asks for it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from breviary.backbones.hub import hub_problem


def push_problems(repo: str | None) -> list[str]:
    """Error messages for an invalid repository name or an unreachable hub, before the export. repo: None = no push."""
    if repo is None:
        return []
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        return [f"--push {repo}: no name of the hub ({str(error).splitlines()[0]}), e.g. --push me/comi-qwen2-7b"]
    if "/" not in repo:
        return [f"--push {repo}: must begin with a user or organisation, e.g. --push me/{repo}"]
    if problem := hub_problem():
        return [f"--push {repo}: {problem}; export without --push, and upload the folder where there is a network"]
    return []


def push_folder(folder: str | Path, repo: str) -> str:
    """Uploads the folder's files into a model repository, new ones private; returns its address.

    Raises: ValueError where the hub refuses, for example without a token.
    """
    api = HfApi()
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message="Exported by Breviary")
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"--push {repo}: the hub refused ({reason}); the exported folder {folder} is complete. A token that may "
            "write is set by `hf auth login`, or in HF_TOKEN"
        ) from error
    return str(done.commit_url)
