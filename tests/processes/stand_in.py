"""Stands on PATH in place of `lora-export` and `python`: asks the fork server to run the command.

It is copied as it is, below a `#!` line. It must start quickly and imports no module of the tests.
"""

import json
import os
import signal
import socket
import sys

SOCKET = "LORA_EXPORT_FORK_SERVER"  # the environment variable that names the server's socket


def ask(place, request, descriptors):
    """Return the connection on which the answers to `request` come; see server.py."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(place)
        message = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(connection, [message], descriptors)
        connection.sendall(message[sent:])
    except OSError:
        connection.close()
        raise
    return connection


def answers(connection):
    """Yield the answers one by one; none comes after that of a child that has ended."""
    with connection.makefile("rb") as lines:
        yield from map(json.loads, lines)


def main():
    """Run the command that this file is named after; end as it ends."""
    program = os.path.basename(sys.argv[0])  # noqa: PTH119 - pathlib takes as long as all else
    if program == "python" and sys.argv[1][:1] == "-" and sys.argv[1] not in {"-c", "-W"}:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606 - as it was called
    request = {"argv": [program, *sys.argv[1:]], "cwd": os.getcwd()}  # noqa: PTH109 - as above
    request["environment"] = dict(os.environ)
    *_, last = answers(ask(os.environ[SOCKET], request, [0, 1, 2]))
    if last["status"] < 0:
        if last["status"] != -signal.SIGKILL:
            signal.signal(-last["status"], signal.SIG_DFL)
        os.kill(os.getpid(), -last["status"])
    sys.exit(last["status"])


if __name__ == "__main__":
    main()
