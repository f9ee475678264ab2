"""A publication in a repository of the Hugging Face hub: one commit. The only import of huggingface_hub."""

import warnings
from collections.abc import Sequence

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.remote import file_system
from rdpm.pipeline.foundation.secrets import masked
from rdpm.pipeline.sharing.published import PublishedFile

SCHEME = "hf://"


def publish(url: str, publication: Sequence[PublishedFile], remove: Sequence[str], private: bool) -> None:
    """Make the repository unless it exists, send the files, and commit all of them at once.

    Files that the hub has already are not sent again. The endpoint and the token are those of fsspec's configuration
    for `hf`, or the hub client's own (HF_ENDPOINT, HF_TOKEN). private: of a new repository. Raises ValueError for a URL
    that is no model repository, OSError when the hub refuses.
    """
    repository, revision, folder = _parsed(url)
    client = file_system(url)[0]  # raises ValueError without the extra
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=client.endpoint, token=client.token)
    names = {file.name for file in publication}
    operations: list = [CommitOperationDelete(folder + name) for name in remove if name not in names]
    for file in publication:
        source = file.source
        if isinstance(source, str):
            source = files.local_path(source) if files.is_local(source) else files.read_bytes(source)
        operations.append(CommitOperationAdd(folder + file.name, source))
    say(f"push: sending {len(publication)} files to {url}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            api.create_commit(repository, operations, commit_message="rdpm push", revision=revision)
        except (OSError, HfHubHTTPError, RuntimeError) as error:  # the last one of threads that send files
            reason = " ".join(masked(f"{error} {error.__cause__ or ''}").split())
            raise OSError(
                f"{url} is as it was, because the hub did not take it: {reason}; push again to go on"
            ) from None
    for warning in caught:
        say(f"push: {warning.message}")
    client.invalidate_cache()


def check(url: str) -> None:
    """Raises ValueError for a URL that names no repository, before anything is asked for."""
    _parsed(url)


def _parsed(url: str) -> tuple[str, str | None, str]:
    """(USER/REPOSITORY, revision, prefix of the names in it) of hf://USER/REPOSITORY[@REVISION][/FOLDER]."""
    user, _, rest = url.removeprefix(SCHEME).strip("/").partition("/")
    repository, _, folder = rest.partition("/")
    repository, _, revision = repository.partition("@")
    if not user or not repository or user in ("datasets", "spaces", "buckets", "kernels"):
        raise ValueError(f"{url!r} is no repository of models; give hf://USER/REPOSITORY")
    return f"{user}/{repository}", revision or None, f"{folder}/" if folder else ""
