"""A process that has imported everything and forks a child for each command.

Importing torch and transformers takes seconds, a fork milliseconds. A child is a copy of a process
that has run nothing, and does what a real process does. test_forked.py compares the two.

`processes.client.Server` starts it as `server.py SOCKET MODULE...`. It prints a line when it is
ready. A client connects to the socket and sends one JSON request with the descriptors of stdin,
stdout and stderr. The answers are JSON lines: `{"pid": 7}`, then `{"stopped": true}` each time the
child stops itself, at last `{"status": 0}`, negative where a signal ended it. The server ends when
its last lifeline is closed: a connection whose request is `{"lifeline": true}`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
import warnings
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

_LONGEST = 1 << 20
_MODULE_ENDS = ("__init__.py", "__main__.py")


class Server:
    """Serves requests one after another; the children run at the same time.

    It has one thread, so that a fork is a clean copy.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._lifelines: set[socket.socket] = set()
        self._children: dict[int, socket.socket] = {}
        self._events = selectors.DefaultSelector()
        # SIGCHLD wakes the selector: a child that stops or ends is seen at once, without polling.
        self._woken, self._wake = socket.socketpair()
        for end in (self._woken, self._wake):
            os.set_blocking(end.fileno(), False)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for readable in (listener, self._woken):
            self._events.register(readable, selectors.EVENT_READ)

    def serve(self) -> dict[str, Any] | None:
        """Return its request in each child; None in the server, when no lifeline is left."""
        while True:
            for key, _ in self._events.select():
                if key.fileobj is self._woken:
                    self._reap()
                elif key.fileobj is self._listener:
                    request = self._accept()
                    if request:
                        return request
                else:
                    self._close(key.fileobj)
                    if not self._lifelines:
                        return None

    def _accept(self) -> dict[str, Any] | None:
        connection, _ = self._listener.accept()
        message, descriptors, _, _ = socket.recv_fds(connection, _LONGEST, 3)
        while message and not message.endswith(b"\n"):
            message += connection.recv(_LONGEST)
        request = json.loads(message) if message else {"lifeline": False}
        if "lifeline" in request:
            self._events.register(connection, selectors.EVENT_READ)
            self._lifelines.add(connection)
            _tell(connection, threads=_threads())
            return None
        pid = os.fork()
        if not pid:
            self._become_child(connection, descriptors)
            return request
        self._children[pid] = connection
        for descriptor in descriptors:
            os.close(descriptor)
        _tell(connection, pid=pid)
        return None

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            while self._woken.recv(_LONGEST):
                pass
        for pid in list(self._children):
            found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if found and os.WIFSTOPPED(status):
                _tell(self._children[pid], stopped=True)
            elif found:
                with self._children.pop(pid) as connection:
                    _tell(connection, status=os.waitstatus_to_exitcode(status))

    def _close(self, lifeline: socket.socket) -> None:
        self._events.unregister(lifeline)
        self._lifelines.discard(lifeline)
        lifeline.close()

    def _become_child(self, connection: socket.socket, descriptors: list[int]) -> None:
        """Close what is the server's: a client would wait for the child's copy of a socket."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._events.close()
        ours = [self._listener, self._woken, self._wake, connection]
        for one in (*ours, *self._lifelines, *self._children.values()):
            one.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _tell(connection: socket.socket, **answer: object) -> None:
    with suppress(BrokenPipeError):  # a client that was killed does not wait for an answer
        connection.sendall(json.dumps(answer).encode() + b"\n")


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - a count, no paths


def _import_everything(modules: list[str]) -> None:
    """Import `modules` as far as they are installed, and every module of the package.

    The collector would go through all there is again and again meanwhile.
    """
    gc.disable()
    package = importlib.import_module("lora_export")
    root = Path(str(package.__file__)).parent
    inside = [
        ".".join(("lora_export", *path.relative_to(root).with_suffix("").parts))
        for path in sorted(root.rglob("*.py"))
        if path.name not in _MODULE_ENDS
    ]
    for name in (*modules, *inside):
        with suppress(ImportError):
            _import(name)
    for finalizer in weakref.finalize._registry.values():
        finalizer.atexit = False  # torch takes its thousand libraries apart, which takes 30 ms
    gc.enable()


def _import(name: str) -> None:
    """Import `module`, or `module:name` where a library loads the name's own module late."""
    module, _, attribute = name.partition(":")
    found = importlib.import_module(module)
    if attribute:
        getattr(found, attribute)


def _run(request: dict[str, Any]) -> int:
    """Do what the request asks for; return the exit status that Python would end with.

    argv: the program and its words, see `_program`. cwd, environment: the child's.
    hook: `module:function` of a module in `path`, called with the request before the program runs.
    """
    try:
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        if "hook" in request:
            sys.path.insert(0, request["path"])
            module, _, function = request["hook"].partition(":")
            getattr(importlib.import_module(module), function)(request)
            sys.path.pop(0)
        _program(request["argv"])
    except SystemExit as end:
        return _status(end.code)
    except BaseException as error:  # noqa: BLE001 - the interpreter prints whatever ends a program
        traceback.print_exception(error.with_traceback(_of_program(error.__traceback__)))
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _program(argv: list[str]) -> None:
    """Run `lora-export WORD...`, `python [-W FILTER] FILE WORD...` or `python -c CODE WORD...`."""
    name, *words = argv
    if name == "lora-export":
        from lora_export.cli import main

        sys.argv, sys.path[0] = [name, *words], str(Path(sys.executable).parent)
        main()
        return
    if name != "python":
        raise ValueError(f"neither lora-export nor python: {name}")
    while words[0] == "-W":
        warnings.simplefilter(words[1])  # type: ignore[arg-type]
        del words[:2]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path[0] = ""
        main_module = type(sys)("__main__")
        sys.modules["__main__"] = main_module
        exec(compile(words[1], "<string>", "exec"), main_module.__dict__)
        return
    sys.argv = words
    script = Path(words[0]).absolute()
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")


def _of_program(frames: TracebackType | None) -> TracebackType | None:
    """Drop the frames of this file and of runpy, which lead to the program's."""
    ours = {__file__, "<frozen runpy>"}
    while frames and frames.tb_frame.f_code.co_filename in ours:
        frames = frames.tb_next
    return frames


def _status(code: object) -> int:
    if isinstance(code, int) or code is None:
        return code or 0
    sys.stderr.write(f"{code}\n")
    return 1


def _leave(status: int) -> None:
    """End as Python does, in its order, without taking the modules apart."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()  # what os._exit leaves out
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status & 0xFF)


def main() -> None:
    """Import, then answer until the last lifeline is closed."""
    place, *modules = sys.argv[1:]
    _import_everything(modules)
    with socket.socket(socket.AF_UNIX) as listener:
        Path(place).unlink(missing_ok=True)  # of a server that was killed
        listener.bind(place)
        listener.listen(64)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        request = Server(listener).serve()
        if request is not None:
            _leave(_run(request))
        # Removed before it is closed: a client that comes now finds none.
        Path(place).unlink()
    os._exit(0)  # without taking torch's modules apart one by one


if __name__ == "__main__":
    main()
