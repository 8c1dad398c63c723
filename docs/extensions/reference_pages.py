"""MyST directives that generate pages from the code.

```{config-keys} coedge.config.cluster_config:ClusterConfig      a table of every key of a pydantic model
```{command-line}                                 a section for each command, with its arguments and options
```{error-table}                                  every deliberate error
```{public-api}                                   autodoc of the names of `coedge` that it holds
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; a `|` inside a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


class Generated(SphinxDirective):
    """Directive whose content is the Markdown text that `text` returns."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(self.text(), allow_section_headings=True)

    def text(self) -> str:
        raise NotImplementedError


class ConfigKeys(Generated):
    required_arguments = 1

    def text(self) -> str:
        from coedge.config.key_reference import describe_keys

        module, _, name = self.arguments[0].partition(":")
        rows = describe_keys(getattr(importlib.import_module(module), name))
        return markdown_table(
            ("key", "type", "default", "meaning"),
            [(f"`{row['key']}`", row["type"], _as_code(row["default"]), row["description"]) for row in rows],
        )


def _as_code(default: str) -> str:
    return default if default == "required" else f"`{default}`"


class CommandLine(Generated):
    def text(self) -> str:
        import typer.main

        from orchestrator.cli.app import app

        commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
        return "\n\n".join(part for name in commands for part in command_parts(commands[name], f"coedge {name}"))


def command_parts(command: Any, path: str, level: int = 2) -> Iterator[str]:
    """Yield the section of a command and of its subcommands."""
    yield f"{'#' * level} {path}"
    yield re.sub(r"^Example: (.+)$", r"Example: `\1`", inspect.cleandoc(command.help or ""), flags=re.MULTILINE)
    rows = [(_names(one), one.help or "", _default(one)) for one in command.params if one.name != "help"]
    if rows:
        yield markdown_table(("", "meaning", "default"), rows)
    for name, inner in getattr(command, "commands", {}).items():
        yield from command_parts(inner, f"{path} {name}", level + 1)


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`" + ("" if parameter.required else ", optional")
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _default(parameter: Any) -> str:
    value = parameter.default
    return "" if value in (None, False, ()) or callable(value) else f"`{value}`"


class ErrorTable(Generated):
    def text(self) -> str:
        import coedge.core.errors

        kinds = [kind for kind in vars(coedge.core.errors).values() if inspect.isclass(kind)]
        rows = []
        for kind in kinds:
            bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
            rows.append((f"`{kind.__name__}`", bases, inspect.getdoc(kind) or ""))
        return markdown_table(("error", "is a", "meaning"), rows)


class PublicApi(Generated):
    has_content = True

    def text(self) -> str:
        import coedge

        lines = []
        for name in " ".join(self.content).split():
            kind = "class" if inspect.isclass(getattr(coedge, name)) else "function"
            lines.append(f".. auto{kind}:: coedge.{name}\n")
        return "\n".join(["```{eval-rst}", *lines, "```"])


def keep_drawings(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Turn text that is indented after a blank line, a drawing or code, into a literal block.

    Docstrings are written to be read in an editor, without the markup of literal blocks.
    """
    if what == "property":
        lines.insert(0, "")  # napoleon reads the words before a colon in the first line as a type
    out: list[str] = []
    for index, line in enumerate(lines):
        begins = line.startswith("    ") and index > 0 and not lines[index - 1].strip()
        before = next((text for text in reversed(out) if text.strip()), "")
        if begins and not before.startswith((" ", ":", "..")) and not before.endswith("::"):
            out += ["::", ""]
        out.append(line)
    lines[:] = out


def short_signature(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """Return the keys and defaults of a pydantic model; the tables have their types."""
    from pydantic import BaseModel

    if not (inspect.isclass(value) and issubclass(value, BaseModel)):
        return None
    shown = []
    for key, field in value.model_fields.items():
        default = "..." if isinstance(field.default, BaseModel) else repr(field.default)
        shown.append(key if field.is_required() else f"{key}={default}")
    return f"(*, {', '.join(shown)})", None


def setup(app: Sphinx) -> dict[str, Any]:
    for name, directive in (
        ("config-keys", ConfigKeys),
        ("command-line", CommandLine),
        ("error-table", ErrorTable),
        ("public-api", PublicApi),
    ):
        app.add_directive(name, directive)
    app.connect("autodoc-process-docstring", keep_drawings, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", short_signature)
    return {"parallel_read_safe": True}
