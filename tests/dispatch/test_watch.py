"""Deaths of workers: each is told with its reason, and the end of Ray is told."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import ray

from coedge.core.errors import ClusterError
from orchestrator.control import ray_control

SECONDS = 0.25


class Serving:
    """Calls of `serve` in the place of Ray's: each ends with a value or an error, in the order of the script."""

    def __init__(self, patch: pytest.MonkeyPatch, script: Sequence[tuple[str, BaseException | None]]) -> None:
        self.script = list(script)
        self.outcome: dict[str, BaseException | None] = {}
        patch.setattr(ray, "wait", self._wait)
        patch.setattr(ray, "get", self._get)

    def _wait(self, references: list[str], num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert num_returns == 1 and timeout == SECONDS
        if not self.script:
            raise RuntimeError("Ray has been shut down")
        name, outcome = self.script.pop(0)
        if name not in references:
            return [], references
        self.outcome[name] = outcome
        return [name], [other for other in references if other != name]

    def _get(self, name: str, timeout: float) -> None:
        outcome = self.outcome[name]
        if outcome is not None:
            raise outcome


def test_every_worker_that_ends_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    Serving(monkeypatch, [("b", ValueError("no memory")), ("nothing", None), ("a", None)])
    references = {"a": "a", "b": "b"}
    assert ray_control.ended(references, SECONDS) == {"b": "no memory"}
    assert ray_control.ended(references, SECONDS) == {}
    assert ray_control.ended(references, SECONDS) == {"a": "its worker stopped"}


def test_the_end_of_ray_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Serving(monkeypatch, [])
    with pytest.raises(ClusterError, match=r"the connection to Ray ended .*shut down.*connect again"):
        ray_control.ended({"a": "a"}, SECONDS)


def died_in_its_constructor(cause: Exception) -> BaseException:
    text = f"Traceback (most recent call last):\n{type(cause).__name__}: {cause}"
    return ray.exceptions.ActorDiedError(ray.exceptions.RayTaskError("WorkerActor.__init__", text, cause, pid=1, ip=""))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ray.exceptions.ActorUnavailableError("Socket closed", None), "cannot be reached any more"),
        (ray.exceptions.ActorDiedError(), "its worker process died"),
        (died_in_its_constructor(OSError("no such interface")), "could not be created: OSError: no such interface"),
        (ValueError("first line\nsecond line"), "first line"),
        (ValueError(), "ValueError"),
    ],
)
def test_errors_are_explained_without_the_words_of_ray(error: BaseException, text: str) -> None:
    assert text in ray_control.explain(error)
