"""mserve: an inference server for MiniMax-M2 and MiniMax-M3."""

__version__ = "0.1.0"

__all__ = ["__version__"]
