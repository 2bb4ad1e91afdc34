"""A refusal is a Status object: how an API server says no.

Agents decide by ``code`` and ``reason`` and show ``message``; all three, and the order of the
keys, are those that real servers were seen to send (kubernetes.md section 3, and the captured
bodies of the conformance suite).
"""

from typing import Any, NamedTuple

from agent.demo.apiserver.resource import Json, Resource
from agent.errors import ClusterError


class Cause(NamedTuple):
    """One reason why an object is invalid: the field, and what is wrong with it."""

    field: str
    reason: str
    message: str


class Refusal(ClusterError):
    """The request is refused; ``status`` is the body that says so, ``code`` the HTTP status."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Json | None = None,
        metadata: Json | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata or {},
            "status": "Failure",
            "message": message,
            **({"reason": reason} if reason else {}),
            **({"details": details} if details is not None else {}),
            "code": code,
        }

    @property
    def retry_after_seconds(self) -> int | None:
        """Return what goes into the Retry-After header, or None."""
        seconds = self.status.get("details", {}).get("retryAfterSeconds")
        return seconds if isinstance(seconds, int) else None


def _details(name: str, group: str, kind: str, **more: Any) -> Json:
    named = {"name": name, "group": group, "kind": kind}
    return {key: value for key, value in named.items() if value} | more


def unknown_path() -> Refusal:
    """Return the 404 for a path that names no resource at all."""
    return Refusal(404, "NotFound", "the server could not find the requested resource", details={})


class NoSuchPage(ClusterError):
    """A path below ``/apis`` that nothing serves: 404 in plain text, not as a Status."""


def not_found(resource: Resource, name: str) -> Refusal:
    """Return the 404 for an object, which is also the one for a subresource not served."""
    details = _details(name, resource.group, resource.plural)
    return Refusal(404, "NotFound", f'{resource.qualified} "{name}" not found', details=details)


def already_exists(resource: Resource, name: str) -> Refusal:
    """Return the 409 for a name that is taken."""
    details = _details(name, resource.group, resource.plural)
    message = f'{resource.qualified} "{name}" already exists'
    return Refusal(409, "AlreadyExists", message, details=details)


MODIFIED = (
    "the object has been modified; please apply your changes to the latest version and try again"
)


def conflict(
    resource: Resource, name: str, why: str = MODIFIED, *, by_kind: bool = False
) -> Refusal:
    """Return the 409 for a precondition that does not hold; deletions name it ``by_kind``."""
    details = _details(name, resource.group, resource.kind if by_kind else resource.plural)
    subject = resource.qualified_kind if by_kind else resource.qualified
    message = f'Operation cannot be fulfilled on {subject} "{name}": {why}'
    return Refusal(409, "Conflict", message, details=details)


def invalid(
    resource: Resource, name: str, causes: list[Cause], *, by_plural: bool = False
) -> Refusal:
    """Return the 422 for an object that breaks its schema or a rule of its metadata.

    The storage layer's own refusals name the resource, not the kind (``by_plural``).
    """
    texts = [f"{cause.field}: {cause.message}" for cause in causes]
    listed = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    details = _details(
        name,
        resource.group,
        resource.plural if by_plural else resource.kind,
        causes=[{"reason": c.reason, "message": c.message, "field": c.field} for c in causes],
    )
    subject = resource.qualified if by_plural else resource.qualified_kind
    message = f'{subject} "{name}" is invalid: {listed}'
    return Refusal(422, "Invalid", message, details=details)


def bad_request(message: str) -> Refusal:
    """Return the 400 for a request that does not parse."""
    return Refusal(400, "BadRequest", message)


def internal(message: str) -> Refusal:
    """Return the 500 (without a reason) for what nobody thought of, such as a bad number."""
    return Refusal(500, "", message)


def method_not_allowed() -> Refusal:
    """Return the 405 for a verb that the path does not have."""
    message = "the server does not allow this method on the requested resource"
    return Refusal(405, "MethodNotAllowed", message, details={})


def unsupported_media(accepted: list[str]) -> Refusal:
    """Return the 415 for a content type that the path does not take."""
    message = (
        "the body of the request was in an unknown format - "
        f"accepted media types include: {', '.join(accepted)}"
    )
    return Refusal(415, "UnsupportedMediaType", message)


def patch_failed() -> Refusal:
    """Return the 422 for a JSON patch whose test or path does not hold."""
    message = "the server rejected our request due to an error in our request"
    return Refusal(422, "Invalid", message, details={})


def unauthorized() -> Refusal:
    """Return the 401 for a token that is not known."""
    return Refusal(401, "Unauthorized", "Unauthorized")


def forbidden(resource: Resource, verb: str, namespace: str, name: str) -> Refusal:
    """Return the 403 for a right that the user does not have."""
    scope = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    subject = f'{resource.qualified} "{name}"' if name else resource.qualified
    message = (
        f'{subject} is forbidden: User "agent" cannot {verb} resource "{resource.plural}" '
        f'in API group "{resource.group}" {scope}'
    )
    details = _details(name, resource.group, resource.plural)
    return Refusal(403, "Forbidden", message, details=details)


def watch_expired(asked: int, oldest: int) -> Refusal:
    """Return the 410 that a watch from a forgotten version gets as its only event."""
    return Refusal(410, "Expired", f"too old resource version: {asked} ({oldest})")


CONTINUE_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. "
    "You can start a new list without the continue parameter, or use the continue token in this "
    "response to retrieve the remainder of the results. Continuing with the provided token "
    "results in an inconsistent list - objects that were created, modified, or deleted between "
    "the time the first chunk was returned and now may show up in the list."
)


def continue_expired(token: str) -> Refusal:
    """Return the 410 for a page of a forgotten list, with a token for the inconsistent rest."""
    return Refusal(410, "Expired", CONTINUE_EXPIRED, metadata={"continue": token})


def version_in_the_future(asked: int, current: int) -> Refusal:
    """Return the 504 for a list at a version that does not exist yet."""
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return Refusal(504, "Timeout", message, details=details)


def throttled(retry_after_seconds: int) -> Refusal:
    """Return the JSON 429 of a server whose storage is not ready yet."""
    details = {"retryAfterSeconds": retry_after_seconds}
    return Refusal(429, "TooManyRequests", "storage is (re)initializing", details=details)
