"""Code blocks of the documentation, and a runner that executes the blocks of a page from top to bottom."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from command_line import Result

from coedge import zoo
from coedge.config.loading import load_config
from coedge.frontend.capture import capture
from coedge.graph.model import Model

ROOT = Path(__file__).resolve().parent.parent
# Class of blocks that need boards, root or an installation. They are checked but not run.
BY_HAND = "by-hand"
# Languages of blocks. `text` is printed output.
LANGUAGES = {"python", "sh", "yaml", "pycon", "text"}

_FENCE = re.compile(r"^```(?:\{code-block\} )?(\w+)\n((?::[^\n]*\n)*)(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """Fenced block: its language, the options under the fence (`:caption: file.yaml`), the text and its first line."""

    language: str
    options: dict[str, str]
    text: str
    line: int

    @property
    def by_hand(self) -> bool:
        return self.options.get("class") == BY_HAND


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a Markdown page in order. Of the directives, only `{code-block}` counts."""
    source = page.read_text(encoding="utf-8")
    parsed = []
    for match in _FENCE.finditer(source):
        options = dict(line[1:].split(": ", 1) for line in match[2].splitlines())
        parsed.append(Block(match[1], options, match[3].lstrip("\n"), source[: match.start()].count("\n") + 1))
    return parsed


def commands(block: Block) -> list[list[str]]:
    """Return the words of each command, without comments and with lines joined at a backslash."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def arguments(words: list[str]) -> list[str]:
    """Return the arguments after `coedge`, with a small image and two runs where the page leaves them open."""
    more = ["--repeat", "2"] if words[1] == "run" and "--repeat" not in words else []
    if words[1] in ("demo", "run") and "--size" not in words:
        more += ["--size", "64"]
    return [*words[1:], *more]


def small_network(name: str, **options: Any) -> Any:
    """Return a small network in place of any network of the zoo, so that pages run in seconds."""
    import torch
    from torch import nn

    assert name in zoo.NAMES
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolutions = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()
        net = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return net.eval().requires_grad_(False)


_captured: dict[tuple[str, ...], Model] = {}


def capture_once(model: Any, *example: Any, **named: Any) -> Model:
    """Capture a network once per layers, weights and input shape, under any name; files are captured as usual."""
    if isinstance(model, str):
        return capture(model, *example)
    weights = sum(float(tensor.double().sum()) for tensor in model.state_dict().values())
    key = (repr(model), str(weights), *map(str, example[0].shape))
    if key not in _captured:
        _captured[key] = capture(model, *example, **named)
    return dataclasses.replace(_captured[key], name=named["name"])


class Page:
    """Runner of the blocks of a page, in the current folder.

    Args:
        cli: runs a `coedge` command.
    """

    def __init__(self, path: Path, cli: Callable[..., Result]) -> None:
        self.path, self._cli = path, cli
        self._scope: dict[str, Any] = {"__name__": "page"}

    def run(self, block: Block) -> None:
        if "caption" in block.options:
            Path(block.options["caption"]).write_text(block.text, encoding="utf-8")
        if block.language == "yaml":
            load_config(yaml.safe_load(block.text))
        if block.by_hand:
            return
        if block.language == "python":
            # Empty lines in front give tracebacks the line numbers of the page.
            exec(compile("\n" * block.line + block.text, str(self.path), "exec"), self._scope)
        elif block.language == "pycon":
            self._doctest(block)
        elif block.language == "sh":
            for words in commands(block):
                assert words[0] == "coedge", f"{self.path.name}:{block.line}: {words[0]} is not run; mark it {BY_HAND}"
                result = self._cli(*arguments(words))
                assert result.code == 0, f"{self.path.name}:{block.line}: {' '.join(words)}\n{result.err}"

    def _doctest(self, block: Block) -> None:
        import doctest

        test = doctest.DocTestParser().get_doctest(block.text, self._scope, self.path.name, str(self.path), block.line)
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        said: list[str] = []
        runner.run(test, out=said.append, clear_globs=False)
        self._scope.update(test.globs)
        assert not runner.failures, "".join(said)
