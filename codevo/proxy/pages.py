"""The hub's own pages on preview origins: complete in themselves, dark and light, no script but a timer."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from html import escape

_STYLE = (
    ":root{color-scheme:light dark;--bg:#fff;--fg:#1c1e21;--dim:#5f6670;--accent:#2457d6}"
    "@media(prefers-color-scheme:dark){:root{--bg:#16181c;--fg:#e8eaed;--dim:#a2a9b4;--accent:#8ab0ff}}"
    "body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--bg);color:var(--fg);"
    "font:16px/1.5 system-ui,sans-serif}main{max-width:32rem;padding:2rem}"
    "h1{font-size:1.3rem;margin:0 0 .5rem}p{margin:0 0 1rem;color:var(--dim)}a{color:var(--accent)}"
)


@dataclass(frozen=True, slots=True)
class PageText:
    """What a page says. ``reload`` is in seconds (0: it does not reload); ``link`` is a URL and its words."""

    status: int
    title: str
    text: str
    reload: int = 0
    link: tuple[str, str] | None = None


def render(page: PageText) -> tuple[str, list[tuple[str, str]]]:
    """The HTML and its headers."""
    nonce = secrets.token_urlsafe(16)
    script = link = ""
    if page.reload:
        script = f'<script nonce="{nonce}">setTimeout(()=>location.reload(),{page.reload * 1000})</script>'
    if page.link:
        url, words = page.link
        link = f'<p><a href="{escape(url)}" target="_top" rel="noopener">{escape(words)}</a></p>'
    html = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{escape(page.title)}</title><style nonce="{nonce}">{_STYLE}</style>'
        f'<main role="status"><h1>{escape(page.title)}</h1><p>{escape(page.text)}</p>{link}</main>'
        f"{script}</html>"
    )
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; base-uri 'none'; "
        "form-action 'none'"
    )
    headers = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", policy),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
    ]
    if page.reload:
        headers.append(("Retry-After", str(page.reload)))
    return html, headers


def stopped(project_url: str) -> PageText:
    """The project does not run, and a visit does not wake it."""
    return PageText(
        503,
        "This project is stopped",
        "Its preview comes back when somebody starts it.",
        reload=10,
        link=(project_url, "Open the project"),
    )


def starting(message: str) -> PageText:
    """The project is on its way."""
    text = message or "The preview appears here by itself."
    return PageText(503, "The project is starting", text, reload=2)


def failing(reason: str, project_url: str) -> PageText:
    """The project could not be started, or does not answer."""
    return PageText(
        503,
        "The project does not answer",
        reason or "Its workspace has a problem.",
        reload=10,
        link=(project_url, "Open the project"),
    )


def too_slow() -> PageText:
    """The program took too long."""
    return PageText(504, "No answer in time", "The program did not answer this request.")


def no_entry(hub_url: str) -> PageText:
    """Not allowed, or no such project: nobody learns which."""
    return PageText(
        404,
        "There is no preview here for you",
        "The project may not exist, or it is private and you are not one of its members.",
        link=(hub_url, "Go to Codevo"),
    )


def log_in(login_url: str) -> PageText:
    """A private preview in a frame or for a visitor without its cookie."""
    return PageText(
        401,
        "This preview is private",
        "Open it in a tab of its own to sign in, or reload the page that shows it.",
        link=(login_url, "Open the preview"),
    )


def code_used() -> PageText:
    """An entry code that is wrong, used or too old."""
    return PageText(403, "This link has expired", "Reload the page that opened the preview to get a new one.")


def plain(status: int, title: str, text: str) -> PageText:
    """Anything else."""
    return PageText(status, title, text)
