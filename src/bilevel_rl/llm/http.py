"""JSON over HTTP with the standard library: retries with growing pauses, a time limit, errors that say what to do."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from bilevel_rl.errors import BilevelError, InvalidConfig, message

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # what a later try may find otherwise


class EndpointFailed(BilevelError, RuntimeError):
    """A server could not be reached, or answered with an error, on every try."""


def post(
    url: str, body: Mapping[str, Any], *, key: str = "", timeout: float = 60.0, tries: int = 5, pause: float = 1.0
) -> Any:
    """The JSON (or text) that a server answers to a JSON body.

    Args:
        url: of the endpoint.
        body: sent as JSON.
        key: sent as a bearer token, where there is one; it is in no error and no file.
        timeout: seconds of one try.
        tries: how often, for failures that may pass (time limits, refused connections, 429 and 5xx).
        pause: seconds before the second try, doubled each time; a server's Retry-After is kept, up to a minute.

    Raises:
        EndpointFailed: no answer after all tries, or an error that no try will change.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    said = ""
    for attempt in range(max(1, tries)):
        wait = pause * 2**attempt
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                text = answer.read().decode("utf-8", "replace")
            return _json(text)
        except urllib.error.HTTPError as error:
            said = f"status {error.code} ({error.read().decode('utf-8', 'replace').strip()[:200]})"
            if error.code not in AGAIN:
                break
            wait = max(wait, _seconds(error.headers.get("Retry-After")))
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            said = f"{type(error).__name__} ({getattr(error, 'reason', error)})"
        if attempt + 1 < tries:
            time.sleep(wait)
    raise EndpointFailed(
        message(url, said, f"a server that answers within {timeout:g} s ({tries} tries)",
                "Check the address, the key and the server's log; a run goes on with `bilevel-rl llm resume`")
    )  # fmt: skip


def address(url: str, where: str) -> str:
    """A URL without its last slash.

    Raises:
        InvalidConfig: something else.
    """
    if not url.startswith(("http://", "https://")) or len(url.split("//", 1)[1]) < 1:
        raise InvalidConfig(message(where, repr(url), "a server is http://HOST:PORT or https://HOST", "Correct the address"))
    return url.rstrip("/")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _seconds(text: str | None) -> float:
    try:
        return min(60.0, float(text or 0))
    except ValueError:
        return 0.0
