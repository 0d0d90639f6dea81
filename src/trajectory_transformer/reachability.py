"""A quick check whether a server answers, such as the hub's, and W&B's address and key."""

import os
import threading
import urllib.error
import urllib.request

from requests.utils import get_netrc_auth

PROBE_SECONDS = 1.0


def unreachable(url: str) -> str | None:
    """Return the reason why a server cannot be reached, or None if it answers within a second."""
    reasons: list[str | None] = []

    def probe() -> None:
        try:
            with urllib.request.urlopen(url, timeout=PROBE_SECONDS):
                reasons.append(None)
        except urllib.error.HTTPError as error:  # refused: a blocking proxy, or a failing server
            refused = error.code in (403, 407) or error.code >= 500
            reasons.append(f"{url} answers {error.code}" if refused else None)
        except (OSError, ValueError) as error:
            reasons.append(f"no connection to {url}: {getattr(error, 'reason', error)}")

    # In a thread, because a name lookup can take longer than the socket's timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return reasons[0] if reasons else f"no answer from {url} within {PROBE_SECONDS:g} s"


def hub_unreachable(path: str = "") -> str | None:
    """Return the reason why Hugging Face's hub cannot be reached, or None if it answers a request for ``path``."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    return unreachable(os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/") + path)


def wandb_url() -> str:
    """Return the address of W&B's server."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def wandb_key_is_configured() -> bool:
    """Return True if a key is in the environment, or in the netrc file for W&B's host."""
    return bool(os.environ.get("WANDB_API_KEY")) or get_netrc_auth(wandb_url()) is not None
