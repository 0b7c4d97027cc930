"""What the modules behind subcommands of ``gpugrad`` share."""

from __future__ import annotations

__all__ = ["CommandError"]


class CommandError(Exception):
    """What a subcommand raises to end with a message for the user and exit code 2."""
