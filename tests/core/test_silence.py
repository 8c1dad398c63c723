"""Silence for named packages in one thread; everything else that the process says arrives."""

from __future__ import annotations

import builtins
import io
import logging
import sys
import textwrap
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from coedge.core.silence import silenced, silenced_warnings


def library(name: str) -> Any:
    """Return a module of a package that does not exist, with functions that warn, print and log."""
    module: Any = types.ModuleType(name)
    code = """
        import logging, sys, warnings
        def warn(text="w", stacklevel=1): warnings.warn(text, stacklevel=stacklevel)
        def write(text): print(text, file=sys.stderr)
        def log(text): logging.getLogger(__name__).warning(text)
    """
    exec(textwrap.dedent(code), module.__dict__)
    return module


def test_only_the_named_packages_are_silent_and_only_in_this_thread(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    loud, quiet, inner, similar = library("loud"), library("quiet"), library("quiet.inner"), library("quieter")
    with warnings.catch_warnings(record=True) as heard, ThreadPoolExecutor(1) as other:
        warnings.simplefilter("always")
        with silenced(["quiet"], ["quiet"]):
            for module in (loud, quiet, inner, similar):
                module.warn(module.__name__)
                module.warn(module.__name__, stacklevel=2)
                module.write(module.__name__)
                module.log(module.__name__)
            other.submit(quiet.warn, "other thread").result()
            other.submit(quiet.write, "other thread").result()
        quiet.warn("afterwards"), quiet.write("afterwards"), quiet.log("afterwards")
    audible = ["loud", "quieter"]
    assert [str(one.message) for one in heard] == ["loud"] * 2 + ["quieter"] * 2 + ["other thread", "afterwards"]
    assert capsys.readouterr().err.splitlines() == [*audible, "other thread", "afterwards"]
    assert [record.getMessage() for record in caplog.records] == [*audible, "afterwards"]


def test_packages_are_silent_where_ray_has_replaced_print(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tqdm_ray = pytest.importorskip("ray.experimental.tqdm_ray")
    monkeypatch.setattr(builtins, "print", tqdm_ray.safe_print)
    loud, quiet = library("loud"), library("quiet")
    with silenced(["quiet"], []):
        loud.write("loud")
        quiet.write("quiet")
    assert capsys.readouterr().err == "loud\n"


def test_warnings_of_a_silenced_package_are_no_errors_where_warnings_are() -> None:
    quiet = library("quiet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with silenced_warnings("quiet"):
            quiet.warn()
            with pytest.raises(UserWarning):
                warnings.warn("of the test", stacklevel=1)
        with pytest.raises(UserWarning):
            quiet.warn()


def test_contexts_of_two_threads_may_overlap_in_any_order() -> None:
    """The one that begins first may end first; a redirection of somebody else in between stays in force."""
    before, level = sys.stderr, logging.getLogger("quiet").level
    first, second = silenced(["quiet"], ["quiet"]), silenced(["quiet"], ["quiet"])
    with ThreadPoolExecutor(1) as other:
        first.__enter__()
        other.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        assert sys.stderr is not before and logging.getLogger("quiet").level == logging.ERROR
        other.submit(second.__exit__, None, None, None).result()
    assert sys.stderr is before and logging.getLogger("quiet").level == level
    elsewhere = io.StringIO()
    try:
        with silenced(["quiet"], []):
            sys.stderr = elsewhere
        assert sys.stderr is elsewhere
    finally:
        sys.stderr = before
    filters = sum("_WarningMatcher" in str(one) for one in warnings.filters)
    assert filters == 1
