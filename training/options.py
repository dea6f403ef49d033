"""The command line's options of a recipe, made of its declarations in training.config."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

import typer

from training.config import OPTIONS, PAPER, Recipe
from training.errors import TrainingError


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option for each choice of a recipe beside its own; it is given by name in
    its parameter `choices` those that are not left open."""
    types = get_type_hints(Recipe)
    own = inspect.signature(command, eval_str=True).parameters
    parameters = [parameter for name, parameter in own.items() if name != "choices"]
    for name, option in OPTIONS.items():
        shown = typer.Option(
            rich_help_panel=option.panel,
            help=option.help,
            metavar=option.metavar,
            show_default=option.left_open or True,
        )
        kind = types[name] if option.reads is None else option.reads
        if option.left_open is not None:
            kind = kind | None
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None if option.left_open else getattr(Recipe, name),
                annotation=Annotated[kind, shown],
            )
        )

    @functools.wraps(command)
    def collecting(**given: Any) -> None:
        choices = {name: given.pop(name) for name in OPTIONS}
        made = {
            name: v for name, v in choices.items() if not OPTIONS[name].left_open or v is not None
        }
        command(**given, choices=made)

    del collecting.__wrapped__  # inspect would look through it
    signature = inspect.Signature(
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    collecting.__signature__ = signature  # type: ignore[attr-defined]
    collecting.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return collecting


def as_in_the_paper(choices: Mapping[str, Any], context: typer.Context) -> dict[str, Any]:
    """The choices with the paper's recipe in them. Raises TrainingError if one was given that
    contradicts it."""
    for name, expected in PAPER.items():
        source = context.get_parameter_source(name)  # by its name: Typer has a click of its own
        given = source is not None and source.name != "DEFAULT"
        if given and choices[name] != expected:
            raise TrainingError(
                f"--paper stands beside {name} {choices[name]!r}; expected {expected!r}, which is"
                " the paper's, or no --paper"
            )
    return {**choices, **PAPER}
