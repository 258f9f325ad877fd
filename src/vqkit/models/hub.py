"""Models on the Hugging Face hub: finding, describing and uploading them.

`huggingface_hub` is imported only when a name is not a folder, or for an upload.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vqkit.config import require
from vqkit.models.files import CONFIG, FREQUENCIES, WEIGHTS

if TYPE_CHECKING:
    from vqkit.models.tokenizer import ImageTokenizer

CARD: Final = "README.md"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_model(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Return the folder `name`, or the folder into which the hub's model `name` was downloaded.

    Raises `ValueError` where neither exists or the download fails.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        require(revision is None, f"revision={revision!r}", f"{folder} is a folder and has none")
        return folder
    require(
        isinstance(name, str) and _HUB_ID.fullmatch(name) is not None,
        f"name={str(name)!r}",
        "no such folder, and no hub id such as 'user/model'",
    )
    require(
        folder.parts[0] != "runs" and not folder.parent.is_dir(),
        f"name={name!r}",
        f"there is no such folder in {folder.parent} (the hub is asked only for names that begin "
        "with no folder here)",
    )
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            str(name),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            allow_patterns=[CONFIG, WEIGHTS, FREQUENCIES],
        )
    except (OSError, ValueError) as error:  # every error of huggingface_hub is one of the two
        raise ValueError(
            f"name={name!r}: no such folder, and the hub did not give it ({error})"
        ) from error
    return Path(found)


def upload(folder: Path, repo_id: str, *, private: bool, token: str | None, message: str) -> str:
    """Upload the files in `folder` to the repository and return the address of the commit.

    The repository is made if needed, and a README that it has already is left alone.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    names = [CONFIG, WEIGHTS] + ([] if api.file_exists(repo_id, CARD) else [CARD])
    commit = api.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message=message, allow_patterns=names
    )
    return str(commit.commit_url)


def model_card(tokenizer: ImageTokenizer, repo_id: str, license: str) -> str:
    """Return the README of a model repository: its licence, preset, rate and how to use it."""
    require(
        re.fullmatch(r"[\w.+-]+", license) is not None,
        f"license={license!r}",
        "expected an identifier such as 'apache-2.0', 'cc-by-4.0' or 'other'",
    )
    config = tokenizer.config
    origin = (tokenizer.compacted_from or {}).get("preset")
    trained = f" (in training `{origin}`, whose computed codes are stored here)" if origin else ""
    side = 256
    description = tokenizer.describe((side, side))
    return f"""---
license: {license}
library_name: vqkit
tags:
- image-tokenizer
- vector-quantization
---

# Image tokenizer

Quantizer preset `{config.quantizer.preset}`{trained} with stride {tokenizer.stride} on images of
{config.network.image_channels} channels, made with vqkit. Licence of the weights: {license}.

Costs of an image of {side} x {side} pixels:

```
{description.text()}
```

```python
from vqkit.models import ImageTokenizer

tokenizer = ImageTokenizer.from_pretrained("{repo_id}")
ids = tokenizer.encode(images)  # uint8, or floats in [-1, 1]: (B, C, H, W) -> (B, h, w, T)
images = tokenizer.decode(ids)
```
"""
