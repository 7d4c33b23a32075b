"""Kernels that are forks of a process with the imports behind it."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from lossbook import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")

FIRST_CELL = "import os, sys; ready = 'torch' in sys.modules"
LAST_CELL = (
    "import matplotlib.pyplot as plt; plt.plot([0, 1]); print(ready, os.getppid(), os.environ['SEEN'], os.getcwd())"
)


def papermill(folder, *cells):
    """The command that executes these cells in that folder, within `lossbook.warm`, and writes out.ipynb."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, folder / "in.ipynb")
    command = [sys.executable, "-m", "lossbook.warm", sys.executable, "-m", "papermill", "-k", "python3"]
    return [*command, "--cwd", str(folder), str(folder / "in.ipynb"), str(folder / "out.ipynb")]


def test_a_kernel_is_a_fork_with_its_own_environment_folder_and_figures(tmp_path):
    (long := tmp_path / ("long" * 25)).mkdir()  # longer than a socket's path may be
    environment = os.environ | {"SEEN": "yes", "TMPDIR": str(long)}
    environment.pop("MPLBACKEND", None)  # a kernel chooses the inline back end itself, unless this is in its way
    process = subprocess.Popen(papermill(tmp_path, FIRST_CELL, LAST_CELL), env=environment, stderr=subprocess.PIPE)
    log = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 0, log
    outputs = nbformat.read(tmp_path / "out.ipynb", 4).cells[1].outputs
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert text.split() == ["True", str(process.pid), "yes", str(tmp_path)]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_a_failure_is_passed_on(tmp_path):
    done = subprocess.run(papermill(tmp_path, "1 / 0"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_no_kernel_outlives_a_kill(tmp_path):
    cell = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(600)"
    process = subprocess.Popen(papermill(tmp_path, cell), stderr=subprocess.DEVNULL)
    kernel = tmp_path / "pid"
    deadline = time.monotonic() + 120
    while not (kernel.exists() and kernel.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    while os.path.exists(f"/proc/{kernel.read_text()}"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_signal_to_a_kernel_that_is_gone_is_no_error():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    gone = warm._Process(child.pid)
    gone.send_signal(signal.SIGKILL)
    assert gone.poll() == 0
