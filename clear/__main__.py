"""Where the commands `clear` and `clear-mil` start, and how every error ends: one message, one exit status."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from clear.errors import ClearError

INTERRUPTED = 130
DEFECT = 1


def main() -> None:
    """Run the command line; bare `clear` in a terminal clears the screen, as its name always did."""
    if Path(sys.argv[0]).name == "clear" and sys.argv[1:] in ([], ["-x"]) and sys.stdout.isatty():
        clear_screen()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """One invocation: returns the exit status and prints errors as sentences, never as tracebacks.

    CLEAR_DEBUG=1 lets exceptions through.
    """
    import typer

    from clear.cli import app

    usage_error = typer.BadParameter.__mro__[2]  # click's base class, of which newer typers carry a copy of their own

    try:
        status = app(args=arguments, standalone_mode=False)
        return status if isinstance(status, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ClearError as error:
        if os.environ.get("CLEAR_DEBUG"):
            raise
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if os.environ.get("CLEAR_DEBUG"):
            raise
        print(f"Error: {error.filename or 'file system'}: {error.strerror or 'cannot be used'}", file=sys.stderr)
        return 2
    except Exception as error:  # the last barrier: a defect of ours, shown as one
        if isinstance(error, usage_error):
            error.show()  # type: ignore[attr-defined]  # ClickException has it
            return 2
        if os.environ.get("CLEAR_DEBUG"):
            raise
        print(
            f"Error: an unexpected {type(error).__name__} in clear itself; nothing written so far is lost. "
            "Please report it with the output of the same command under CLEAR_DEBUG=1",
            file=sys.stderr,
        )
        return DEFECT


def clear_screen() -> None:
    """Hand over to the system's own `clear`, the next one on PATH that is not this program; else write its codes."""
    own = Path(sys.argv[0]).resolve()
    for folder in os.get_exec_path():
        found = shutil.which("clear", path=folder)
        if found and Path(found).resolve() != own and Path(found).resolve().parent != Path(sys.executable).parent:
            os.execv(found, ["clear", *sys.argv[1:]])
    sys.stdout.write("\x1b[H\x1b[2J\x1b[3J")
    sys.stdout.flush()
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
