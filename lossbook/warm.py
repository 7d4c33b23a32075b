"""Jupyter kernels that start with their imports behind them.

    python -m lossbook.warm COMMAND ...

imports what nearly every notebook imports, once, and runs the command, one thread a process; each kernel that
papermill or nbval starts within it is a fork of this process. The imports take as long as the median derivation.
Linux only, since elsewhere a fork after these imports is not safe: there, kernels start as they always do.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback

from jupyter_client.provisioning import LocalProvisioner

SOCKET = "LOSSBOOK_WARM_SOCKET"
LAUNCHER = ["-m", "ipykernel_launcher"]
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # kernels run side by side, one a core
PRELOAD = (
    "ipykernel.kernelapp",
    "lossbook.figures",
    "lossbook.losses",
    "matplotlib.backends.backend_pdf",
    "sklearn.datasets",
    "sklearn.metrics",
    "sympy.physics.units",  # which the first simplification imports
    "torch",
    "torch._dynamo",
)


class _Process:
    """What jupyter_client asks of a process, for one that is no child of the asking process."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.pid = pid

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 0
        return None

    wait = poll

    def send_signal(self, number: int):
        with contextlib.suppress(ProcessLookupError):  # as Popen does
            os.kill(self.pid, number)


class WarmKernel(LocalProvisioner):
    """Starts kernels as forks of the process that serves `LOSSBOOK_WARM_SOCKET`, others as LocalProvisioner does."""

    async def launch_kernel(self, cmd: list[str], **options) -> dict:
        """Start the kernel with this command line, in `options["cwd"]` with `options["env"]`."""
        if SOCKET not in os.environ or cmd[1:3] != LAUNCHER:
            return await super().launch_kernel(cmd, **options)
        request = {"arguments": cmd[3:], "cwd": options.get("cwd") or os.getcwd(), "env": options["env"]}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.environ[SOCKET])
            socket.send_fds(connection, [b"\0"], [1, 2])
            connection.sendall(json.dumps(request).encode())
            connection.shutdown(socket.SHUT_WR)
            self.pid = self.pgid = int(connection.makefile().read())
        self.process = _Process(self.pid)
        return self.connection_info


def _kernel(arguments: list[str], cwd: str, env: dict[str, str], output: list[int]):
    """Be a kernel: what Popen and `python -m ipykernel_launcher` would have done."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, descriptor in enumerate(output, start=1):
        os.dup2(descriptor, number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    # What a kernel sets before matplotlib is imported, and matplotlib reads as it is.
    backend = os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    importlib.import_module("matplotlib").rcParams["backend"] = backend
    sys.path.pop(0)  # the folder that -m put there
    # A kernel ends when the process is gone that started it, which is this one's parent.
    sys.argv = ["ipykernel_launcher", *arguments, f"--IPKernelApp.parent_handle={os.getppid()}"]
    importlib.import_module("ipykernel.kernelapp").launch_new_instance()


def _answer(connection: socket.socket, server: socket.socket) -> int:
    """Fork the kernel that is asked for, and tell its process number to who asks and to the caller."""
    _, output, _, _ = socket.recv_fds(connection, 1, 2)
    request = json.load(connection.makefile())
    if not (pid := os.fork()):
        server.close()
        connection.close()
        try:
            _kernel(**request, output=output)
        except BaseException:
            traceback.print_exc()
        finally:  # nothing of what this process would clean up on leaving is the kernel's
            os._exit(0)
    for descriptor in output:
        os.close(descriptor)
    connection.sendall(str(pid).encode())
    return pid


def serve(command: list[str]) -> int:
    """Run the command with kernels that are forks of this process; return its exit status."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        # by the number of the folder: a socket's path has at most 107 characters, and that of the folder may have more
        path = f"/proc/{os.getpid()}/fd/{os.open(folder, os.O_PATH)}/kernels"
        server.bind(path)
        server.listen()
        server.settimeout(0.1)
        environment = os.environ | {SOCKET: path, "JUPYTER_DEFAULT_PROVISIONER_NAME": "lossbook-warm"}
        process, kernels = subprocess.Popen(command, env=environment), set()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command has it too, and says what becomes of its kernels
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            for module in PRELOAD:  # while the command starts; the first kernels wait
                importlib.import_module(module)
            gc.freeze()  # a collection in a kernel would copy every page that it shares with this process
            while process.poll() is None:
                kernels = {pid for pid in kernels if not os.waitpid(pid, os.WNOHANG)[0]}
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection, contextlib.suppress(OSError, ValueError):  # who asked may be gone; the others are not
                    connection.settimeout(None)
                    kernels.add(_answer(connection, server))
        finally:
            process.terminate()
            for pid in kernels:
                os.kill(pid, signal.SIGKILL)
        return process.returncode


if __name__ == "__main__":
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))  # before the imports: the libraries read them but once
    if sys.platform != "linux":
        os.execvp(sys.argv[1], sys.argv[1:])
    os._exit(serve(sys.argv[1:]))  # nothing is left to clean up, and some libraries would talk about what they leave
