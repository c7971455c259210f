"""Help of the command line in words: an option names what it takes (FOLDER, N), and no Python type is shown."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperGroup


class CommandGroup(TyperGroup):
    """The commands of the program."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Options before the verb."""
        return [_in_words(param) for param in super().get_params(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A verb by its name."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            for param in (*command.params, command.get_help_option(ctx)):
                _in_words(param)
        return command


def _in_words(param: Any) -> Any:
    if isinstance(param, TyperArgument):
        vars(param)["display_type_rich"] = lambda ctx: ""  # noqa: ARG005 - its name is in the column before
    elif param is not None and param.metavar is None and param.is_flag:
        param.metavar = ""
    return param
