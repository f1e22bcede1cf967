"""Signing in with a token, and out."""

from urllib.parse import urlsplit

from msgspec import Struct
from starlette.responses import RedirectResponse, Response

from api.errors import ProblemError
from api.web.pages import SIGN_IN, Page, Visit
from api.web.session import forget, remember


class SignIn(Struct, frozen=True):
    """Where to go afterwards."""

    next: str = "/"


async def show(visit: Visit) -> Response:
    """The form."""
    if visit.site.visitors.of(visit.request):
        return RedirectResponse(_own(visit.query(SignIn).next), 303)
    return visit.render("sign_in.html", next=_own(visit.query(SignIn).next), fault=None)


async def sign_in(visit: Visit) -> Response:
    """Turn a token into a cookie."""
    form = await visit.form()
    there = _own(form.get("next", "/"))
    visitor = visit.site.visitors.sign_in(form.get("token", "").strip())
    if visitor is None:
        fault = "Nobody knows this token. It begins with fw_ and was shown once, when it was made."
        return visit.render("sign_in.html", 403, next=there, fault=fault)
    response = RedirectResponse(there, 303)
    remember(response, visitor, visit.request)
    return response


async def sign_out(visit: Visit) -> Response:
    """End the session and take the cookie back."""
    await visit.form()
    if not visit.visitor.is_signed_in:
        raise ProblemError(404, "Nobody is signed in here: without tokens this machine alone may look")
    visit.site.visitors.sign_out(visit.visitor)
    response = RedirectResponse(SIGN_IN, 303)
    forget(response)
    return response


def _own(address: str) -> str:
    """A path of this site; anything else becomes the first page, so that no link leads through here to elsewhere."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "/"
    is_own = address.startswith("/") and not address.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return address if is_own and address.isprintable() and "\\" not in address else "/"


PAGES = (
    Page(path=SIGN_IN, handler=show, role=None),
    Page(path=SIGN_IN, method="POST", handler=sign_in, role=None),
    Page(path="/sign-out", method="POST", handler=sign_out),
)
