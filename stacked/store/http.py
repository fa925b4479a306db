"""One file over http(s), streamed to disk under limits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from stacked.errors import AdapterTooLarge, SourceNotFound, SourceRefused, SourceUnreachable
from stacked.logs import shown_url
from stacked.store.limits import Limits
from stacked.store.text import size

if TYPE_CHECKING:
    import httpx


def download(url: str, target: Path, limits: Limits) -> None:
    """Stream a URL to a file; redirects are followed one by one, to check each of them."""
    # Imported here: a third of a second that local sources do not need.
    import httpx

    timeout = httpx.Timeout(limits.read_seconds, connect=limits.connect_seconds)
    deadline = time.monotonic() + limits.download_seconds
    # `identity`: no compression, so that the size on the wire is the file's.
    headers = {"accept-encoding": "identity", "user-agent": "stacked"}
    try:
        with httpx.Client(timeout=timeout, headers=headers) as client:
            for _ in range(limits.max_redirects + 1):
                with client.stream("GET", url) as response:
                    if not response.has_redirect_location:
                        _save(response, url, target, limits, deadline)
                        return
                    url = _redirect(url, response.headers["location"])
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        # Not the library's sentence, which may quote a password.
        raise SourceRefused(f"{shown_url(url)} is not an http(s) address") from error
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise SourceUnreachable(f"{shown_url(url)} could not be fetched: {reason}") from error
    raise SourceUnreachable(f"{shown_url(url)} redirects more than {limits.max_redirects} times")


def _save(
    response: httpx.Response, url: str, target: Path, limits: Limits, deadline: float
) -> None:
    _check_status(response.status_code, url)
    announced = response.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limits.max_bytes:
        raise AdapterTooLarge(
            f"{shown_url(url)} has {size(int(announced))}; "
            f"at most {size(limits.max_bytes)} are taken"
        )
    total = 0
    with target.open("xb") as file:
        # No chunk size: httpx would wait until one is full, however slowly the bytes drip.
        for chunk in response.iter_raw():
            total += len(chunk)
            if total > limits.max_bytes:
                most = size(limits.max_bytes)
                raise AdapterTooLarge(f"{shown_url(url)} sent more than {most}, the most taken")
            if time.monotonic() > deadline:
                raise SourceUnreachable(
                    f"{shown_url(url)} was not complete after {limits.download_seconds:.0f} s"
                )
            file.write(chunk)


def _check_status(status: int, url: str) -> None:
    if status in (404, 410):
        raise SourceNotFound(f"{shown_url(url)} does not exist (status {status})")
    if status in (401, 403):
        raise SourceUnreachable(
            f"{shown_url(url)} may not be read (status {status}); use an address that carries its "
            "permission, or give a directory"
        )
    if status != 200:
        raise SourceUnreachable(f"{shown_url(url)} answered with status {status}; try again later")


def _redirect(url: str, location: str) -> str:
    """Where a redirect leads: http(s) only, and never from https down to http."""
    following = urljoin(url, location)
    before, after = urlsplit(url).scheme.lower(), urlsplit(following).scheme.lower()
    if after not in ("http", "https") or (before == "https" and after == "http"):
        raise SourceRefused(
            f"{shown_url(url)} redirects to {after or 'nothing'}://, which is not followed"
        )
    return following
