"""Who looks at the pages: a signed cookie instead of a token that a script could read.

Rule 1: the cookie holds the hash of a token and never the token, and the token is looked up at each request. So a token
that is revoked ends what was begun with it. The key is made at the start: a restart signs everybody out. Who signs out
is remembered as long as the cookie would be good, so that a copy of it is worth nothing.

Rule 2: a form is taken only from a page that was made for this visitor. Each page's forms carry a signature of what is
in the cookie, which no other site can read; and a browser that says that the request comes from elsewhere is believed.

Without tokens the sidecar is reachable by this machine alone, and everybody may do everything, but Rule 2 holds too.
"""

import hmac
import secrets
from datetime import UTC, datetime, timedelta

from itsdangerous import BadData, Signer, URLSafeTimedSerializer
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from api.auth import Gate, Role
from api.errors import ProblemError

COOKIE = "fleetwatt_session"
SESSION_S = 12 * 3600
ENDED_MAX = 10_000
"""Sessions that were signed out of and are remembered."""
NOBODY = "everybody on this machine"
_OTHER_SITE = "The form was not sent from a page of this site, or the page is from before a restart; open it again"


class Visitor(Struct, frozen=True):
    """Who asks for a page, and what the page's forms carry."""

    name: str
    role: Role | None
    """None: a stranger, who has not signed in."""
    session: str
    """The cookie."""
    form_key: str
    is_signed_in: bool

    @property
    def can_write(self) -> bool:
        """Whether links may be changed."""
        return self.may(Role.write)

    @property
    def is_admin(self) -> bool:
        """Whether rejections may be replayed."""
        return self.may(Role.admin)

    def may(self, role: Role) -> bool:
        """Whether the visitor may do what takes this role."""
        return self.role is not None and self.role >= role


class Ended:
    """Sessions that were signed out of, while their cookies would be good; of too many the oldest are forgotten."""

    def __init__(self) -> None:
        self._until: dict[str, datetime] = {}

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._until

    def __len__(self) -> int:
        return len(self._until)

    def add(self, session_id: str, until: datetime) -> None:
        """Remember one."""
        now = datetime.now(UTC)
        self._until = {known: end for known, end in self._until.items() if end > now} | {session_id: until}
        if len(self._until) > ENDED_MAX:
            del self._until[next(iter(self._until))]


class Visitors:
    """Knows visitors again."""

    def __init__(self, gate: Gate) -> None:
        key = secrets.token_bytes(32)
        self._gate = gate
        self._sessions = URLSafeTimedSerializer(key, salt="session")
        self._forms = Signer(key, salt="form")
        self._ended = Ended()

    def sign_in(self, token: str) -> Visitor | None:
        """The visitor who has this token, or None where nobody knows it."""
        known = self._gate.find(token)
        return self._visitor(known.name, known.role, self._begin(known.digest.hex()), True) if known else None

    def sign_out(self, visitor: Visitor) -> None:
        """End the session: its pages, its streams, and what is done with a copy of its cookie."""
        (_, session_id), begun = self._sessions.loads(visitor.session, return_timestamp=True)
        self._ended.add(session_id, begun + timedelta(seconds=SESSION_S))

    def of(self, request: Request) -> Visitor | None:
        """Who asks; None where they have to sign in first."""
        cookie = request.cookies.get(COOKIE, "")
        digest = self._digest(cookie)
        if self._gate.is_open:
            return self._visitor(NOBODY, Role.admin, self._begin("") if digest is None else cookie, False)
        known = self._gate.known(bytes.fromhex(digest)) if digest else None
        return self._visitor(known.name, known.role, cookie, True) if known else None

    def stranger(self, request: Request) -> Visitor:
        """Who has not signed in yet; their forms are held to Rule 2 as well."""
        cookie = request.cookies.get(COOKIE, "")
        return self._visitor("a stranger", None, self._begin("") if self._digest(cookie) is None else cookie, False)

    def check_form(self, visitor: Visitor, request: Request, form_key: str) -> None:
        """Raises ProblemError 403 for a form that is not from a page that was made for this visitor."""
        is_elsewhere = request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        if is_elsewhere or not hmac.compare_digest(visitor.form_key.encode(), form_key.encode()):
            raise ProblemError(403, _OTHER_SITE)

    def _digest(self, cookie: str) -> str | None:
        """That of the token it was begun with, empty for a stranger's; None: the cookie is none, or not any more."""
        try:
            digest, session_id = self._sessions.loads(cookie, max_age=SESSION_S)
        except (BadData, ValueError, TypeError):
            return None
        # By what is in it: a cookie can be written in more than one way.
        return None if session_id in self._ended else str(digest)

    def _visitor(self, name: str, role: Role | None, session: str, is_signed_in: bool) -> Visitor:
        return Visitor(name, role, session, self._forms.get_signature(session).decode(), is_signed_in)

    def _begin(self, digest: str) -> str:
        return str(self._sessions.dumps([digest, secrets.token_urlsafe(16)]))


def remember(response: Response, visitor: Visitor, request: Request) -> None:
    """Give the cookie, if the browser does not have it yet."""
    if request.cookies.get(COOKIE) != visitor.session:
        # Behind a proxy that ends TLS, the browser says so in Origin; it sends that with each form.
        is_tls = request.headers.get("origin", "").startswith("https://")
        response.set_cookie(COOKIE, visitor.session, SESSION_S, httponly=True, samesite="lax", secure=is_tls)


def forget(response: Response) -> None:
    """Take the cookie back."""
    response.delete_cookie(COOKIE, httponly=True, samesite="lax")
