"""A quick check that a server answers."""

import threading
import urllib.error
import urllib.request

PROBE_SECONDS = 1.0


def unreachable(url: str) -> str | None:
    """The reason why a server cannot be reached, or None if it answers within a second."""
    reasons: list[str | None] = []

    def probe() -> None:
        try:
            with urllib.request.urlopen(url, timeout=PROBE_SECONDS):
                reasons.append(None)
        except urllib.error.HTTPError as error:  # refused: a proxy that lets nothing through, or a sick server
            refused = error.code in (403, 407) or error.code >= 500
            reasons.append(f"{url} answers {error.code}" if refused else None)
        except (OSError, ValueError) as error:
            reasons.append(f"no connection to {url}: {getattr(error, 'reason', error)}")

    # In a thread, as looking up a name can take longer than any timeout that sockets know.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return reasons[0] if reasons else f"no answer from {url} within {PROBE_SECONDS:g} s"
