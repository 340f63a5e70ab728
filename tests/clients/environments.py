"""The environments of client programs: what they contain, and how they are made.

`python -m tests.clients.environments FOLDER` makes those that do not exist, with `uv`, which takes
seconds. Versions are pinned, so that a failure is ours. Clients that cannot be installed together
have separate environments.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

UV = "uv==0.13.9"
ENVIRONMENTS: Mapping[str, Sequence[str]] = {
    "sdks": (
        "openai==3.57.0",
        "anthropic==2.14.0",
        "langchain-openai==1.7.4",
        "openai-agents==0.24.0",
        "pydantic-ai-slim[openai]==2.66.0",
        "ollama==0.6.3",
    ),
    "litellm": ("litellm==1.110.2", "instructor==1.17.0"),
    "lm-eval": ("lm-eval[api]==0.4.13",),
    "guidellm": ("guidellm==0.8.1",),
}
_TORCH = "guidellm"  # imports torch, for which that of the tests does
_MADE = "made"  # a file in a complete environment, with what it contains


def folder() -> Path:
    """Return where the environments are: in the virtual environment of the tests."""
    return Path(sys.prefix) / "clients"


def python(name: str) -> Path | None:
    """Return the interpreter of an environment; None if it has not been made like this."""
    home = folder() / name
    made = home / _MADE
    complete = made.is_file() and made.read_text() == _contents(name)
    return home / "bin" / "python" if complete else None


def _contents(name: str) -> str:
    return "\n".join(ENVIRONMENTS[name])


def make(name: str) -> None:
    """Make an environment; `CalledProcessError` if a package cannot be installed."""
    home = folder() / name
    shutil.rmtree(home, ignore_errors=True)
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(home)], check=True)
    install = [*uv, "pip", "install", "--quiet", "--python", str(home / "bin" / "python")]
    if name == _TORCH:
        without_torch = home / "without-torch.txt"
        without_torch.write_text("torch; python_version < '3'\n")
        install += ["--override", str(without_torch)]
        [site] = home.glob("lib/python*/site-packages")
        [ours] = Path(sys.prefix).glob("lib/python*/site-packages")
        (site / "torch-of-the-tests.pth").write_text(f"{ours}\n")
    subprocess.run([*install, *ENVIRONMENTS[name]], check=True)
    (home / _MADE).write_text(_contents(name))


def main() -> int:
    """Make all environments; those that cannot be made are reported, and their tests skipped."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV]
    try:
        subprocess.run(pip, check=True)
        for name in ENVIRONMENTS:
            if python(name) is None:
                make(name)
    except subprocess.CalledProcessError as error:
        print(f"clients cannot be installed, their tests are skipped: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
