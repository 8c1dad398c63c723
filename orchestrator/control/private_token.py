"""A token of their own for the clusters that CoEdge starts, and an environment that is afterwards as it was.

Ray would write ~/.ray/auth_token, and every later `ray start --head` of the user would want that token.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from orchestrator.control.ray_token import ADDRESS_NAME, FOLDER_PREFIX, MODE, TOKEN, TOKEN_NAME, TOKEN_PATH, mode


class KeptEnvironment:
    """The variables of Ray's token authentication, as they were when the object was made.

    Ray changes them in this process, and what it starts inherits them.
    """

    def __init__(self) -> None:
        self._before = {name: os.environ.get(name) for name in (MODE, TOKEN, TOKEN_PATH)}
        self._folder: Path | None = None
        self._pid = os.getpid()

    def make_token(self) -> None:
        """Set a new token that only its file in a private folder holds, unless the environment sets another mode."""
        if mode() not in (None, "", "token") or not _ray_knows_tokens():
            return
        self._folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))  # only its owner may enter
        path = self._folder / TOKEN_NAME
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32))
        os.environ.pop(TOKEN, None)
        os.environ.update({MODE: "token", TOKEN_PATH: str(path)})
        atexit.register(self.restore)
        _reload()

    def publish(self, address: str) -> None:
        """Write whose token it is, so that a process of the same user that is refused can be told."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / ADDRESS_NAME).write_text(address, encoding="utf-8")

    def restore(self) -> None:
        """Remove the token and set the variables as they were. A forked child must not do that for its parent."""
        if os.getpid() != self._pid:
            return
        changed = {name for name, value in self._before.items() if os.environ.get(name) != value}
        for name in changed:
            value = self._before[name]
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
            atexit.unregister(self.restore)
        if changed:
            _reload()


def _ray_knows_tokens() -> bool:
    """Return whether this version of Ray has tokens."""
    return hasattr(importlib.import_module("ray._raylet"), "AuthenticationTokenLoader")


def _reload() -> None:
    """Make Ray read the variables again: it keeps the mode and the token."""
    library = importlib.import_module("ray._raylet")
    with contextlib.suppress(AttributeError):  # an older Ray
        library.Config.initialize("")
        library.AuthenticationTokenLoader.instance().reset_cache()
