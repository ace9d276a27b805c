"""Execute a notebook with papermill in the interpreter that asks for it, whatever kernels Jupyter knows on this machine."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptfluence.common import files
from gptfluence.common.errors import GPTfluenceError, unknown
from gptfluence.common.settings import ROOT


def execute(notebook: str, output: Path, parameters: Mapping[str, Any], failure: Path | None = None) -> None:
    """Execute a notebook of notebooks/ and write the executed copy.

    The kernel is this Python, without the user's IPython configuration. failure: a file for where and why it failed, as JSON

    Raises ConfigurationError if the copy cannot be written, GPTfluenceError that names the cell and its error.
    """
    # jsonschema would build a grammar for URIs, a second for each notebook, and uses it on none of theirs
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import papermill
    from papermill.exceptions import PapermillExecutionError

    source = ROOT / "notebooks" / f"{notebook}.ipynb"
    if not source.is_file():
        known = sorted(path.stem for path in source.parent.glob("*.ipynb"))
        raise GPTfluenceError(unknown("notebook", notebook, known))
    partial = output.with_suffix(".running.ipynb")
    for path, option in ((output, "--output"), (failure, "--failure")):
        if path is not None:
            files.check_writable(path, option)
    if failure is not None:
        failure.unlink(missing_ok=True)  # of an earlier run
    names = (str(path).replace("{", "{{").replace("}", "}}") for path in (source, partial))  # papermill fills in braces
    cell = None
    try:
        with tempfile.TemporaryDirectory(prefix="gptfluence-") as folder:
            own = {"kernel_name": "python3", "kernel_manager_class": _kernel_of_this_python(folder)}
            executed = papermill.execute_notebook(*names, dict(parameters), progress_bar=False, **own)
    except PapermillExecutionError as error:
        print("\n".join(error.traceback[-1:]), file=sys.stderr)
        cell, cause, raised = error.exec_count, f"{error.ename}: {error.evalue}", error
    except RuntimeError as error:  # the kernel does not start, or died
        cause, raised = f"its kernel, {sys.executable}, ended or does not answer (out of memory?): {error}", error
    else:
        partial.replace(output)
        for line in _warnings_in(executed):
            print(line, file=sys.stderr)
        return
    if failure is not None:
        from gptfluence.workflow.outcomes import write_failure  # seconds of imports that a good run does not need

        write_failure(failure, notebook, cell, cause)
    where = f"notebook {notebook}" + ("" if cell is None else f", cell {cell}")
    raise GPTfluenceError(f"{where}: {cause} (executed so far: {partial})") from raised


def _warnings_in(executed: Any) -> list[str]:
    """What cells warned of: it stands in the executed notebook, and belongs into the log, too."""
    cells = executed.cells if executed is not None else []
    said = [one.text for cell in cells for one in cell.get("outputs", []) if one.get("name") == "stderr"]
    return [line for text in said for line in text.splitlines() if "Warning: " in line]


def _kernel_of_this_python(folder: str) -> type:
    """A kernel manager that starts this interpreter, and keeps its files in a folder: the home may not be writable."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    # the backend that kernels take: another one would take the pictures out of the executed notebook
    environment = {"IPYTHONDIR": folder, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    # -P: modules of the working directory do not stand in for Python's own
    command = [sys.executable, "-P", "-m", "ipykernel", "-f", "{connection_file}"]
    known = {**get_kernel_dict(), "argv": command, "env": environment}

    class KernelOfThisPython(AsyncKernelManager):
        def __init__(self, **given: Any) -> None:
            super().__init__(connection_file=str(Path(folder) / "connection.json"), **given)

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(**known)

    return KernelOfThisPython
