"""A quick check that a server answers."""

import threading
import urllib.error
import urllib.request

PROBE_SECONDS = 1.0


def unreachable(url: str) -> str | None:
    """The reason why a server cannot be reached, or None if it answers within a second."""
    reasons: list[str | None] = []
    # In a thread, as looking up a name can take longer than any timeout that sockets know.
    thread = threading.Thread(target=lambda: reasons.append(_probe(url)), daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return reasons[0] if reasons else f"no answer from {url} within {PROBE_SECONDS:g} s"


def _probe(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        refused = error.code in (403, 407) or error.code >= 500  # a proxy that lets nothing through, or a sick server
        return f"{url} answers {error.code}" if refused else None
    except (OSError, ValueError) as error:
        return f"no connection to {url}: {getattr(error, 'reason', error)}"
