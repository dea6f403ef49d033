"""Send an adapter file to a running server."""

from __future__ import annotations

from pathlib import Path

import httpx2

from adapters.errors import CannotUpload

SECONDS = 60  # the server replays the probe before it answers


def upload(file: Path, url: str, key: str | None, activate: bool) -> bool:
    """Whether it was new to the server. Raises CannotUpload."""
    try:
        answer = httpx2.post(
            f"{url.rstrip('/')}/adapters",
            files={"file": (file.name, file.read_bytes())},
            data={"activate": "true" if activate else "false"},
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=SECONDS,
        )
    except UnicodeEncodeError:
        raise CannotUpload(
            "the key holds a character that no header takes; expected ASCII"
        ) from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise CannotUpload(f"{url} cannot be reached: {error}") from None
    if answer.status_code not in (200, 201):
        try:
            reason = answer.json()["error"]
        except (ValueError, KeyError, TypeError):
            reason = answer.text[:200]
        raise CannotUpload(f"{url} answered {answer.status_code}: {reason}")
    return answer.status_code == 201
