"""Who may do what: bearer tokens with roles, known to the sidecar only by their hashes.

A token is 256 random bits, so a plain SHA-256 keeps it: there is nothing to guess. A line of the tokens file:

    sha256:HEX ROLE NAME

Lines that are empty or begin with # are left out. The file is read again when it changes, so that a token is revoked by
deleting its line.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from enum import IntEnum
from pathlib import Path

import structlog
from msgspec import Struct
from starlette.requests import Request

from api.errors import ProblemError
from sql.settings import SettingsError

log = structlog.get_logger("fleetwatt.api.auth")

_LINE = re.compile(r"sha256:([0-9a-f]{64})[ \t]+(read|write|admin)[ \t]+([A-Za-z0-9._:-]{1,64})")


class Role(IntEnum):
    """What a token is good for; each includes those below it."""

    read = 1
    write = 2
    admin = 3


class Token(Struct, frozen=True):
    """What is known of a token."""

    digest: bytes
    role: Role
    name: str


class TokensError(Exception):
    """The tokens file cannot be used."""


def new_token(role: Role, name: str) -> tuple[str, str]:
    """A new token and its line for the file."""
    token = f"fw_{secrets.token_urlsafe(32)}"
    return token, f"sha256:{_digest(token).hex()} {role.name} {name}"


def parse(text: str) -> list[Token]:
    """The tokens of a file; raises TokensError, which names the line but never quotes it."""
    tokens = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if not found:
            raise TokensError(f"line {number} is not of the form sha256:HEX ROLE NAME")
        tokens.append(Token(bytes.fromhex(found[1]), Role[found[2]], found[3]))
    return tokens


class Gate:
    """Lets requests in, or not."""

    def __init__(self, tokens_file: str | None) -> None:
        """Without a file everybody may do everything: the settings see to it that only this machine can ask."""
        self._path = Path(tokens_file) if tokens_file else None
        self._version: tuple[int, int, int] | None = None
        self._tokens: list[Token] = []
        if self._path:
            try:
                self._read(self._path)
                if not self._tokens:  # later a file without a token is one whose last token was revoked
                    raise TokensError("it holds no token; make one with: python -m api token --role admin")
            except (OSError, UnicodeDecodeError, TokensError) as error:
                raise SettingsError(
                    f"API_TOKENS_FILE is {tokens_file!r}, which cannot be used ({error}); "
                    "allowed: the path of a file made by `python -m api token`"
                ) from error

    @property
    def is_open(self) -> bool:
        """Whether there are no tokens."""
        return self._path is None

    def admit(self, request: Request, role: Role | None, *, from_browser: bool = False) -> str | None:
        """The name of the token, or None where none is needed; raises ProblemError 401 or 403.

        A browser that opens a page can give the token only as the password of HTTP Basic.
        """
        if self._path is None or role is None:
            return None
        given = _given(request.headers.get("authorization", ""), from_browser)
        token = self.find(given) if given else None
        if token is None:
            challenge = 'Bearer realm="fleetwatt"' + (', Basic realm="fleetwatt"' if from_browser else "")
            detail = "The token is not known" if given else "Send a token in the header: Authorization: Bearer TOKEN"
            raise ProblemError(401, detail, {"WWW-Authenticate": challenge})
        if token.role < role:
            detail = f"This needs a token of the role {role.name}; {token.name} has the role {token.role.name}"
            raise ProblemError(403, detail)
        return token.name

    def find(self, given: str) -> Token | None:
        """What is known of a token, if anything."""
        return self.known(_digest(given))

    def known(self, digest: bytes) -> Token | None:
        """The token with this hash; compares with every one in constant time, so that the time says nothing."""
        if self._path:
            self._refresh(self._path)
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def _refresh(self, path: Path) -> None:
        try:
            if self._stat(path) != self._version:
                self._read(path)
                log.info("tokens read", tokens=len(self._tokens))
        except (OSError, UnicodeDecodeError, TokensError) as error:
            log.error("the tokens file cannot be read, the tokens known so far stay", error=str(error))

    def _read(self, path: Path) -> None:
        self._version = self._stat(path)
        self._tokens = parse(path.read_text(encoding="utf-8"))

    @staticmethod
    def _stat(path: Path) -> tuple[int, int, int]:
        found = path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino


def _given(header: str, from_browser: bool) -> str | None:
    scheme, _, rest = header.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip() or None
    if scheme.lower() == "basic" and from_browser:
        try:
            return base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
