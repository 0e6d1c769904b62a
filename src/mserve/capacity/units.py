"""Bytes as people read them."""

from __future__ import annotations


def human_bytes(num_bytes: int) -> str:
    """Two decimals and a binary unit, for example ``21.50 GiB``."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes >= 1 << power:
            return f"{num_bytes / (1 << power):.2f} {unit}"
    return f"{num_bytes} B"
