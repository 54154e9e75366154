"""The Hugging Face hub: whether anybody speaks there, and its files.

The rule of waiting: a first word must come within a second, be it only the hub's TLS hello or a proxy's refusal; who is
silent longer is not there. After it the hub may take ten seconds to answer for a file, and a download has the client's
own read timeout ($HF_HUB_DOWNLOAD_TIMEOUT). Where the way to a hub that is alive takes longer than a second,
$HF_HUB_ETAG_TIMEOUT gives the seconds for the first word.

Nothing here needs torch.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

FIRST_WORD_S = 1.0
ANSWER_S = 10.0

Answer = TypeVar("Answer")


class HubError(Exception):
    """Why a file could not be had; callers say what to do instead."""


def cached(place: str, file: str) -> Path | None:
    """A file that was fetched before, without the network."""
    from huggingface_hub import try_to_load_from_cache

    repository, kind = _repository(place)
    found = try_to_load_from_cache(repository, file, repo_type=kind)
    return Path(found) if isinstance(found, str) else None


def fetch(place: str, file: str) -> Path:
    """A file of the repository `place`, downloaded into the cache. Raises HubError saying why not, soon.

    The client alone would try for minutes where nobody answers.
    """
    if why := silence():
        raise HubError(why)
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    repository, kind = _repository(place)
    url, limit = hf_hub_url(repository, file, repo_type=kind), max(ANSWER_S, _patience())
    try:
        _within(limit, lambda: get_hf_file_metadata(url, timeout=limit))
        return Path(hf_hub_download(repository, file, repo_type=kind, etag_timeout=limit))
    except Exception as error:  # the client raises many kinds; each means the same to the user
        raise HubError(f"{type(error).__name__} at {urlsplit(url).hostname}") from error


def silence() -> str:
    """Why the hub cannot be asked anything, in a few words; "" where it, or a proxy before it, speaks."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    from huggingface_hub import constants

    hub, wait = urlsplit(constants.ENDPOINT), _patience()
    try:
        _within(wait, lambda: _first_word(hub, wait))
    except Exception:  # no name, no way, no word: nobody is there
        return f"{hub.hostname} said nothing within {wait:g} s; HF_HUB_ETAG_TIMEOUT=SECONDS waits longer"
    return ""


def place_of_timm(model: str) -> str | None:
    """The repository of a timm model's weights, `timm/MODEL.TAG`, as timm's source has it; None where timm must say.

    A list entry with the hub id `timm/` means a repository of the entry's own name, and the first entry of a model is
    the one that its bare name stands for (timm, models/_registry.py and _builder.py). Importing timm, and with it
    torch, takes seconds.
    """
    spec = find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        return None
    name = re.escape(model) if "." in model else re.escape(model) + r"\.\w+"
    for file in sorted((Path(spec.submodule_search_locations[0]) / "models").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if match := re.search(rf"^ *['\"]({name})\*?['\"]:", text, re.MULTILINE):
            following = re.split(r"^(?: *['\"][\w.]+\*?['\"]:|\})", text[match.end() :], maxsplit=1, flags=re.MULTILINE)
            entry = re.sub(r"#.*", "", following[0])
            return f"timm/{match[1]}" if re.search(r"\bhf_hub_id=['\"]timm/['\"]", entry) else None
    return None


def _repository(place: str) -> tuple[str, str]:
    """A repository id and its kind; weights in a data set's repository are written `datasets/OWNER/NAME`."""
    is_data = place.startswith("datasets/")
    return place.removeprefix("datasets/"), "dataset" if is_data else "model"


def _patience() -> float:
    """Seconds for a first word: the user's, where the hub's client is told some."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_ETAG_TIMEOUT) if os.environ.get("HF_HUB_ETAG_TIMEOUT") else FIRST_WORD_S


def _first_word(hub: SplitResult, seconds: float) -> None:
    """Returns when the hub, or the proxy on the way to it, has said anything; raises OSError when not.

    A TCP connection is none: firewalls take it and stay silent.
    """
    secure, host = hub.scheme == "https", hub.hostname or ""
    port = hub.port or (443 if secure else 80)
    proxies = {} if proxy_bypass(host) else getproxies()
    proxy = proxies.get(hub.scheme) or proxies.get("all") or ""
    at = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else hub
    first = at.hostname or "", at.port or ((1080 if at.scheme.startswith("socks") else 80) if proxy else port)
    if proxy and at.scheme != "http":  # SOCKS or TLS: its language is the client's business
        socket.create_connection(first, timeout=seconds).close()
        return
    connection = (HTTPSConnection if secure else HTTPConnection)(*first, timeout=seconds)
    if proxy:
        connection.set_tunnel(host, port)
    try:
        connection.connect()
        if not secure:
            connection.request("HEAD", "/")
            connection.getresponse()
    except ConnectionError:  # closed without a word
        raise
    except (ssl.SSLCertVerificationError, HTTPException):  # words, though none to trust: the client says so
        return
    except OSError as error:
        if not str(error).startswith("Tunnel connection failed"):  # else the proxy has spoken: it wants a password
            raise
    finally:
        connection.close()


def _within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """What `ask` gives within so many seconds; raises what it raises, or TimeoutError.

    Names are looked up without a limit, and some clients try again and again, so it runs in a thread that is left
    behind.
    """
    answers: list[Answer] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # raised below, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answers[0]
