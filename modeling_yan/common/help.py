"""How the scripts' `--help` looks."""

import argparse
import textwrap

# A value of an option whose name says what it is, and of one whose name is too long to be said twice.
KINDS = {int: "N", float: "X"}
LONGEST_NAME = 16
# More characters of choices are listed behind the help, not in it.
LONGEST_CHOICES = 60


class ScriptHelp(argparse.HelpFormatter):
    """
    Help as wide as the terminal: paragraphs are wrapped, indented lines (commands) stay as they are, an option is shown
    in one spelling, with its default where that says something.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = []
        for block in textwrap.dedent(text).strip().split("\n\n"):
            own = block.startswith(("    ", "\t"))
            filled.append(textwrap.indent(block if own else textwrap.fill(block, width), indent))
        return "\n\n".join(filled) + "\n"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        long = [option for option in action.option_strings if option.startswith("--")]
        if len(long) < 2:
            return super()._format_action_invocation(action)
        # HfArgumentParser takes every name with hyphens, too.
        value = "" if action.nargs == 0 else " " + self._format_args(action, self._default_name(action))
        return long[0] + value

    def _default_name(self, action: argparse.Action) -> str:
        if action.type in KINDS:
            return KINDS[action.type]
        return action.dest.upper() if len(action.dest) <= LONGEST_NAME else "VALUE"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return self._default_name(action)

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str):
        if action.metavar is None and action.choices and self._has_many_choices(action):
            return lambda count: ("CHOICE",) * count
        return super()._metavar_formatter(action, default_metavar)

    @staticmethod
    def _has_many_choices(action: argparse.Action) -> bool:
        return len(",".join(map(str, action.choices))) > LONGEST_CHOICES

    def _get_help_string(self, action: argparse.Action) -> str:
        text = " ".join((action.help or "").split())
        if action.choices and self._has_many_choices(action):
            text += f" One of {', '.join(map(str, action.choices))}."
        silent = any(action.default is value for value in (None, False, argparse.SUPPRESS)) or action.default in (
            "",
            [],
        )
        if action.option_strings and not silent and "default" not in text:
            text += " (default: %(default)s)"
        return text
