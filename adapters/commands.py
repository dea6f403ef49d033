"""Command lines with several commands, one of which need not be named."""

from __future__ import annotations

from typing import Any, ClassVar

from typer.core import TyperGroup


class DefaultCommand(TyperGroup):
    """Where no command is named, it is `default`."""

    default: ClassVar[str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for option in self.params for name in option.opts}
        if not args or (args[0] not in self.commands and args[0] not in own):
            args = [self.default, *args]
        rest: list[str] = super().parse_args(ctx, args)
        return rest
