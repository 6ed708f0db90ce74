"""launcher.py SOCKET PYTHON ITSELF ARGUMENTS…: run them in a fork of the server, as PYTHON would.

It hands over its streams, passes on signals, and ends as the fork ends.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# what libraries read as they load: any other value needs a process of its own
READ_AT_IMPORT = (
    "COLUMNS",
    "CUDA_VISIBLE_DEVICES",
    "FORCE_COLOR",
    "GLIBC_TUNABLES",
    "HF_HOME",
    "LD_PRELOAD",
    "MKL_NUM_THREADS",
    "NO_COLOR",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTHONWARNINGS",
    "TERM",
    "TRITON_INTERPRET",
)


def main() -> None:
    """Never returns."""
    place, real, itself, *arguments = sys.argv[1:]
    if arguments[:1] == ["-u"]:
        arguments = arguments[1:]
    plain = arguments and (arguments[0] in ("-c", "-m") or not arguments[0].startswith("-"))
    server = socket.socket(socket.AF_UNIX)
    for _ in range(1200):  # while the server imports
        with contextlib.suppress(OSError):
            server.connect(place)
            break
        time.sleep(0.05)
    lines = server.makefile("r")
    theirs = json.loads(lines.readline())
    if not plain or any(os.environ.get(x) != theirs.get(x) for x in READ_AT_IMPORT):
        os.execv(real, [real, *sys.argv[4:]])
    request = {"arguments": arguments, "python": itself, "cwd": os.getcwd()}
    request["environment"] = dict(os.environ)
    text = json.dumps(request).encode()
    socket.send_fds(server, [len(text).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(text)
    pid = int(lines.readline())
    for number in PASSED_ON:
        signal.signal(number, lambda given, frame: os.kill(pid, given))
    status = int(lines.readline())
    if status < 0:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
