"""``mserve doctor``: what this machine offers, and what mserve would do with it.

Finds and prints; changes nothing. Torch is imported here only, and only when the command runs, so
that a broken installation is a line of the report instead of a traceback.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

import mserve

if TYPE_CHECKING:
    from mserve.capacity import Machine

GIB = 1 << 30

# CPU instructions that decide how fast a matrix product can be, slowest first.
_CPU_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
    "i8mm",
)


class Finding(msgspec.Struct, frozen=True):
    """One line of the report. ``value`` is JSON-ready; ``shown`` is how a person reads it."""

    name: str
    value: Any
    shown: str


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Report cores, memory, GPU and the kernels that would run."""
    findings = examine()
    if as_json:
        typer.echo(json.dumps({finding.name: finding.value for finding in findings}, indent=2))
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        typer.echo(f"{finding.name:<{width}}  {finding.shown}")


def examine() -> list[Finding]:
    """Everything the report says, in its order."""
    from mserve.capacity import read_machine

    machine = read_machine()
    return [
        _plain("mserve", mserve.__version__),
        _plain("python", platform.python_version()),
        _plain("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        *_processor(machine),
        _memory(machine),
        *_torch(),
        _compiler(),
    ]


def _plain(name: str, value: str) -> Finding:
    return Finding(name, value, value)


def _processor(machine: Machine) -> list[Finding]:
    from mserve.capacity import numa_nodes

    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    useful = [flag for flag in _CPU_FLAGS if flag in flags]
    nodes = numa_nodes(Path("/"))
    (threads,) = machine.threads(None, ranks=1)
    cores = {"granted": len(machine.cores), "quota": machine.cpu_quota}
    cores |= {"present_cpus": os.cpu_count() or 1}
    return [
        _plain("cpu", info.get("model name") or platform.processor() or "unknown"),
        Finding("cores", cores, _cores_line(machine)),
        Finding("threads", msgspec.to_builtins(threads), threads.line),
        Finding(
            "numa_nodes", {f"node{node}": cpus for node, cpus in nodes.items()}, numa_line(nodes)
        ),
        Finding("cpu_flags", useful, " ".join(useful) or "none of those that matter"),
    ]


def _memory(machine: Machine) -> Finding:
    found = {
        "available_bytes": machine.available_bytes,
        "total_bytes": machine.total_bytes,
        "limit_bytes": machine.limit_bytes,
    }
    shown = f"{machine.available_bytes / GIB:.1f} GiB free of {machine.total_bytes / GIB:.1f} GiB"
    if machine.limit_bytes is not None:
        shown += f", limited to {machine.limit_bytes / GIB:.1f} GiB"
    return Finding("memory", found, shown)


def _torch() -> list[Finding]:
    """Torch, the GPUs it sees, and what runs the operations."""
    try:
        import torch

        from mserve.kernels import find_kernels
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        reason = str(error).splitlines()[0]
        return [Finding("torch", None, f"does not load: {reason}")]
    kernels = find_kernels(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        _plain("torch", str(torch.__version__)),
        Finding(
            "gpus",
            [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
            ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in gpus) or "none",
        ),
        Finding("kernels", kernels.implementation, kernels.line),
    ]


def _cpuinfo() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    rows = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in rows}


def _cores_line(machine: Machine) -> str:
    line = f"{len(machine.cores)} granted, of {os.cpu_count()} processors"
    return line if machine.cpu_quota is None else f"{line}, limited to {machine.cpu_quota:g}"


def numa_line(nodes: dict[int, str]) -> str:
    if len(nodes) < 2:
        return "1"
    return f"{len(nodes)}: " + ", ".join(f"node {node} has {cpus}" for node, cpus in nodes.items())


def _compiler() -> Finding:
    """The C++ compiler that builds native kernels."""
    path = shutil.which("g++") or shutil.which("c++")
    if path is None:
        return Finding("compiler", None, "none")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
    version = (done.stdout.splitlines() or ["does not run"])[0]
    return Finding("compiler", {"path": path, "version": version}, version)
