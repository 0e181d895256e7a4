"""Starts a command in a network namespace of its own, where the system allows one."""

from __future__ import annotations

import os
import subprocess
import sys

VARIABLE = "LORA_EXPORT_NETWORK"
"""Names "none" for the command, or why the network is still there."""


def why_not() -> str:
    """Return why no network namespace can be made; "" where one can."""
    try:
        made = subprocess.run(
            ["unshare", "-rn", "true"], capture_output=True, check=False, text=True
        )
    except OSError as error:
        return f"unshare cannot be run: {error.strerror}"
    return "" if made.returncode == 0 else f"unshare -rn: {made.stderr.strip()[:200]}"


if __name__ == "__main__":
    reason = why_not()
    os.environ[VARIABLE] = reason or "none"
    command = sys.argv[1:] if reason else ["unshare", "-rn", *sys.argv[1:]]
    print(f"network: {reason or 'none'}", flush=True)  # noqa: T201 - the log says how it ran
    os.execvp(command[0], command)  # noqa: S606 - the command is tox's
