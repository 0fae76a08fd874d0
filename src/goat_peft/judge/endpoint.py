"""The judge behind an OpenAI-compatible endpoint: one question at a time, asked again while the trouble may pass.

The key is read by the caller, lives in memory alone, and, unless too short to be a secret, is cut out of every text
that comes back.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeGuard
from urllib.parse import urlsplit

import openai

from ..errors import UserError, first_line
from .prompts import Message

# Told by the endpoint and true for every request: wrong key, no permission, no such model or address, nothing left to spend.
FATAL = frozenset({401, 402, 403, 404})
# May pass: timeouts, conflicts, rate limits; every 5xx too.
PASSING = frozenset({408, 409, 425, 429})
NO_KEY = "none"
# A shorter key is a placeholder ("none", "vllm") and stands in ordinary text and addresses too: not looked for in any.
SHORTEST_SECRET = 12


class Failed(Exception):
    """One request got no usable reply; `str(error)` says why."""


@dataclass(frozen=True)
class Patience:
    """How long and how often a request is tried.

    Attributes:
        attempts: tries of one request, the first one included.
        base: seconds before the second try; doubles from try to try.
        longest: seconds that a wait of ours may reach.
        longest_asked: seconds that the endpoint may ask us to wait (Retry-After); more than that is a failure.
        timeout: seconds that one try may take.
    """

    attempts: int = 8
    base: float = 1.0
    longest: float = 60.0
    longest_asked: float = 600.0
    timeout: float = 180.0

    def wait(self, tries: int, asked: float | None = None) -> float:
        """Seconds to wait after `tries` tries: exponential, and not less than `asked`.

        Half of it is random, so that requests that failed together do not come back together.
        """
        full = min(self.longest, self.base * 2 ** (tries - 1))
        return max(full * random.uniform(0.5, 1.0), (asked or 0.0) + self.base * random.uniform(0.0, 0.5))


@dataclass(frozen=True)
class Reply:
    """A judge's text and the tokens that the endpoint counted for it (0 where it reports none)."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class Endpoint:
    """A judge model at an address.

    Args:
        url: base address, such as https://api.openai.com/v1.
        model: the judge's name at the endpoint.
        key: key, or None for an endpoint that takes none.
        settings: further fields of each request, such as temperature.
        patience: tries and waits.

    Raises:
        UserError: the address cannot be one.
    """

    def __init__(
        self, url: str, model: str, key: str | None, settings: dict[str, Any], patience: Patience | None = None
    ) -> None:
        check_url(url)
        self.url, self.model, self.settings = url, model, settings
        self.patience = patience or Patience()
        self._key = key
        # Tries are counted here, for all causes alike; the client's own would multiply them.
        self._client = openai.AsyncOpenAI(
            base_url=url, api_key=key or NO_KEY, max_retries=0, timeout=self.patience.timeout
        )

    async def ask(self, messages: list[Message], told: Callable[[str], None] = lambda trouble: None) -> Reply:
        """Ask the judge once, with as many tries as it takes; before each further try, `told` hears what went wrong.

        Raises:
            Failed: no reply after the last try, or the endpoint refused this one request.
            UserError: no request can succeed (wrong key, no such model).
        """
        for tries in range(1, self.patience.attempts + 1):
            asked: float | None = None
            try:
                return self._reply(await self._send(messages))
            except openai.APIStatusError as error:
                asked = self._judge_status(error)
                trouble = f"HTTP {error.status_code} ({self._clean(error)})"
            except openai.APITimeoutError:
                trouble = f"no reply within {self.patience.timeout:g} s"
            except openai.APIConnectionError as error:
                trouble = f"no connection ({self._clean(error.__cause__ or error)})"
            except (openai.APIError, ValueError, TypeError, LookupError, AttributeError) as error:
                trouble = f"not a chat completion ({self._clean(error)})"
            if tries < self.patience.attempts:
                told(trouble)
                await asyncio.sleep(self.patience.wait(tries, asked))
        raise Failed(f"{trouble}, after {self.patience.attempts} tries")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _send(self, messages: list[Message]) -> Any:
        return await self._client.chat.completions.create(
            model=self.model,
            messages=messages,  # type: ignore[arg-type]
            extra_body=self.settings,
        )

    def _reply(self, completion: Any) -> Reply:
        """Read a completion; the client checks no types, so a broken one raises here."""
        if isinstance(completion, str):
            raise TypeError("the reply is not JSON")
        if not completion.choices:
            raise LookupError("it has no choices")
        text = completion.choices[0].message.content
        if not isinstance(text, str) or not text.strip():
            raise TypeError("its message is empty")
        usage = getattr(completion, "usage", None)
        return Reply(
            self._without_key(text),
            int(getattr(usage, "prompt_tokens", None) or 0),
            int(getattr(usage, "completion_tokens", None) or 0),
        )

    def _judge_status(self, error: openai.APIStatusError) -> float | None:
        """Return the seconds that the endpoint asks to wait, or None; raise when trying again is of no use."""
        status, said = error.status_code, self._clean(error)
        if status in FATAL or error.code == "insufficient_quota":
            remedy = {401: "check the key", 404: "check --model and --endpoint"}.get(status, "check the account")
            raise UserError(f"--endpoint={self.url}: HTTP {status} for model {self.model} ({said}); {remedy}") from None
        if status not in PASSING and status < 500:
            raise Failed(f"HTTP {status} ({said})") from None
        asked = retry_after(error.response.headers.get("retry-after"))
        if asked is not None and asked > self.patience.longest_asked:
            raise Failed(f"HTTP {status}, and the endpoint asks to wait {asked:.0f} s") from None
        return asked

    def _clean(self, error: BaseException) -> str:
        """Return an error's first line, short and without the key."""
        text = first_line(error)
        if isinstance(error, openai.APIStatusError) and isinstance(error.body, dict):
            text = str(error.body.get("message") or text)
        text = " ".join(self._without_key(text).split())
        return text if len(text) <= 300 else text[:297] + "..."

    def _without_key(self, text: str) -> str:
        """Return a text with the key cut out, where the key is long enough to be a secret."""
        return text.replace(self._key, "[key]") if is_secret(self._key) else text


def is_secret(key: str | None) -> TypeGuard[str]:
    """Whether a key is long enough to be kept out of texts: `SHORTEST_SECRET` characters or more."""
    return key is not None and len(key) >= SHORTEST_SECRET


def check_url(url: str) -> None:
    """Raise `UserError` for an address that cannot be an endpoint, or that holds a secret."""
    parts = urlsplit(url)
    shown = f"--endpoint={parts.scheme}://{parts.hostname or ''}{parts.path}"
    try:
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"{shown}: not a web address; give the base address, such as https://api.openai.com/v1")
    if parts.username or parts.password or parts.query:
        raise UserError(
            f"{shown}: holds a name, password or query; give the bare address and the key by --key-variable"
        )


def is_local(url: str) -> bool:
    """Whether an address is this machine's own, which requests do not leave."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def retry_after(value: str | None) -> float | None:
    """Seconds in a Retry-After header, which holds a number or a date; None for none or another text."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
