"""`python -m api` runs the sidecar; `token`, `openapi` and `postman` print what their names say.

Exit codes: 0 in good order, 1 something failed, 2 a setting is wrong.
"""

import argparse
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from api import openapi, postman, server
from api.app import build_app
from api.auth import Role, new_token
from api.settings import ApiSettings
from sql import logs
from sql.settings import SettingsError, read

NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    chosen = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = chosen.run
    try:
        return run(chosen)
    except SettingsError as error:
        print(f"fleetwatt: {error}", file=sys.stderr)  # noqa: T201 - a line for the technician, not a log record
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m api", description="What dashboards and technicians ask.")
    parser.set_defaults(run=_run)
    commands = parser.add_subparsers(metavar="COMMAND")
    commands.add_parser("run", help="run the sidecar (what is done when no command is given)")
    token = commands.add_parser("token", help="make a token, print it once, and keep its hash in API_TOKENS_FILE")
    token.add_argument("--role", required=True, choices=[role.name for role in Role])
    token.add_argument("--name", type=_name, help="who has it, for the log (left out: something unique)")
    token.set_defaults(run=_token)
    commands.add_parser("openapi", help="print the OpenAPI document").set_defaults(run=_openapi)
    commands.add_parser("postman", help="print a Postman collection").set_defaults(run=_postman)
    return parser


def _run(_: argparse.Namespace) -> int:
    settings = read(ApiSettings, os.environ)
    logs.configure(settings.log_format, settings.log_level)
    app = build_app(settings)
    with server.listen(settings) as listener:
        return 0 if server.serve(app, settings, listener) else 1


def _token(chosen: argparse.Namespace) -> int:
    role = Role[chosen.role]
    token, line = new_token(role, chosen.name or f"{role.name}-{secrets.token_hex(3)}")
    path = os.environ.get("API_TOKENS_FILE")
    if path:
        try:
            _append(Path(path), line)
        except OSError as error:
            raise SettingsError(
                f"API_TOKENS_FILE is {path!r}, which cannot be written ({error}); allowed: the path of a file"
            ) from error
        _say(f"added to {path}: {line.split(maxsplit=1)[1]}")
    else:
        _say("API_TOKENS_FILE is not set; add this line to the file that it will name:")
        _say(line)
    _say("the token, which is shown only now:")
    _print(token)
    return 0


def _append(path: Path, line: str) -> None:
    """The file belongs to its owner alone; a last line without an end is ended first."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            line = line if file.read(1) == b"\n" else f"\n{line}"
        file.write(f"{line}\n".encode())


def _openapi(_: argparse.Namespace) -> int:
    _print(_pretty(openapi.document()))
    return 0


def _postman(_: argparse.Namespace) -> int:
    _print(_pretty(postman.collection(openapi.document())))
    return 0


def _pretty(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _name(text: str) -> str:
    if not 1 <= len(text) <= 64 or not NAME_CHARACTERS.issuperset(text):
        raise argparse.ArgumentTypeError("allowed: 1 to 64 of A-Z a-z 0-9 . _ : -")
    return text


def _print(text: str) -> None:
    print(text)  # noqa: T201 - what the command is for


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - beside what the command is for


if __name__ == "__main__":
    sys.exit(main())
