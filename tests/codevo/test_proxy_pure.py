"""Routes, headers and frames: the proxy's parts without I/O."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codevo.proxy.frames import (
    CLOSE,
    PING,
    FrameError,
    FrameFollower,
    Pace,
    close_payload,
    encode,
    repaired_close,
)
from codevo.proxy.headers import (
    preview_request,
    preview_response,
    program_cookies,
    program_set_cookie,
    rewritten_location,
    workspace_request,
    workspace_response,
)
from codevo.proxy.routes import resolve
from codevo.proxy.workspace import without_token


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/api/kernels", "runner"),
        ("/api/kernels/abc/channels", "runner"),
        ("/api/kernelspecs", "runner"),
        ("/terminals/websocket/1", "runner"),
        ("/api/ports", "runner"),
        ("/api/events", "runner"),
        ("/lsp/cpp", "runner"),
        ("/api/contents", "worker"),
        ("/api/contents/a%20b/%C3%A4.py", "worker"),
        ("/files/x.bin", "worker"),
        ("/collab/src%2Fmain.py", "worker"),
        ("/presence", "worker"),
        ("/api/durability", "worker"),
        ("/api/history/src/main.py", "worker"),
        ("/api/worker/events", "worker"),
    ],
)
def test_each_route_has_its_container_and_keeps_its_spelling(path: str, where: str) -> None:
    found = resolve(path)
    assert found is not None and (found.audience, found.path) == (where, path)
    # a base URL that ends with a slash, joined to a path that begins with one
    assert resolve("/" + path) == found


@pytest.mark.parametrize(
    "path",
    [
        "",
        "api/kernels",
        "/",
        "/api",
        "/api/kernelsx",
        "/_codevo/health",
        "/%5fcodevo/health",
        "//_codevo/health",
        "/files/../_codevo/flush",
        "/files/%2e%2e/_codevo/flush",
        "/files/%2E./x",
        "/files/a%2f..%2f..%2fb",
        "/files/..%5cx",
        "/files/a%00b",
        "/files/a\r\nX: y",
        "/files/a\tb",
        "/api%2Fkernels",
        "/files/" + "a" * 9000,
    ],
)
def test_everything_else_is_refused(path: str) -> None:
    assert resolve(path) is None


@given(st.text(alphabet="./%2eEfF_codevapiles\\5c", max_size=40))
def test_nothing_that_climbs_is_forwarded(text: str) -> None:
    from urllib.parse import unquote

    found = resolve("/files/" + text)
    if found is not None:
        assert ".." not in unquote(found.path).replace("\\", "/").split("/")


def test_requests_carry_only_what_is_listed() -> None:
    sent = workspace_request(
        [
            ("Cookie", "codevo-session=1"),
            ("Authorization", "Bearer x"),
            ("Codevo-Token", "forged"),
            ("codevo-port", "1"),
            ("X-XSRFToken", "x"),
            ("X-Forwarded-For", "1"),
            ("Connection", "keep-alive, range"),
            ("Transfer-Encoding", "chunked"),
            ("Range", "bytes=0-1"),
            ("content-type", "text/plain"),
        ]
    )
    assert sent == [("Range", "bytes=0-1"), ("content-type", "text/plain")]


@pytest.mark.parametrize(
    ("given_type", "out"),
    [
        ("text/html; charset=utf-8", "application/octet-stream"),
        ("image/svg+xml", "application/octet-stream"),
        ("application/xhtml+xml", "application/octet-stream"),
        ("text/xml", "application/octet-stream"),
        ("application/javascript", "application/octet-stream"),
        ("text/css", "application/octet-stream"),
        ("text/html, application/json", "application/octet-stream"),
        ("application/json", "application/json"),
        ("application/problem+json; charset=UTF-8", "application/problem+json; charset=UTF-8"),
        ("text/plain;charset=utf-8", "text/plain; charset=utf-8"),
        ("image/png", "image/png"),
        ("text/event-stream", "text/event-stream"),
    ],
)
def test_what_a_browser_could_run_becomes_a_download(given_type: str, out: str) -> None:
    headers = dict(workspace_response([("Content-Type", given_type)], "p"))
    assert headers["Content-Type"] == out
    assert ("Content-Disposition" in headers) == (out == "application/octet-stream")
    assert headers["Content-Security-Policy"] == "sandbox"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("location", "out"),
    [
        ("/api/kernels/x", "/p/abc/api/kernels/x"),
        ("/p/abc/api/x", "/p/abc/api/x"),
        ("/p/other/api/x", "/p/abc/p/other/api/x"),
        ("//evil.test/", None),
        ("https://evil.test/", None),
        ("/\\evil.test/", None),
        ("/../../admin", None),
        ("/%2e%2e/admin", None),
        ("/p/abc/../../admin", None),
        ("javascript:alert(1)", None),
        ("relative", None),
        ("/a b", None),
    ],
)
def test_a_location_stays_in_the_workspace(location: str, out: str | None) -> None:
    assert rewritten_location(location, "abc") == out


def test_previews_keep_the_programs_headers_and_lose_ours() -> None:
    sent = preview_request(
        [
            ("Cookie", "a=1; __Host-codevo-preview=s; codevo-session=t; b=2"),
            ("Codevo-Token", "forged"),
            ("CODEVO-PORT", "22"),
            ("Codevo_Port", "22"),
            ("X-Forwarded-Host", "evil"),
            ("Connection", "close, X-Secret"),
            ("X-Secret", "1"),
            ("Authorization", "Basic mine"),
            ("Host", "evil"),
        ],
        host="x.preview.test",
        scheme="https",
    )
    assert sent == [
        ("Cookie", "a=1; b=2"),
        ("Authorization", "Basic mine"),
        ("X-Forwarded-Host", "x.preview.test"),
        ("X-Forwarded-Proto", "https"),
    ]
    assert program_cookies("__Host-codevo-preview=s") == ""
    answered = preview_response(
        [
            ("Set-Cookie", "sid=1; Domain=.test; Path=/; HttpOnly"),
            ("Set-Cookie", " codevo-session=1; Path=/"),
            ("Content-Security-Policy", "default-src 'self'"),
            ("Connection", "keep-alive"),
            ("Clear-Site-Data", '"*"'),
            ("Bad", "a\rb"),
        ]
    )
    assert answered == [
        ("Set-Cookie", "sid=1; Path=/; HttpOnly"),
        ("Content-Security-Policy", "default-src 'self'"),
    ]
    assert program_set_cookie("__HOST-CODEVO-preview=1") is None


def test_the_token_leaves_the_query_and_the_rest_keeps_its_spelling() -> None:
    assert without_token("session_id=a%20b&token=s&x=%2F") == "session_id=a%20b&x=%2F"
    assert without_token("%74oken=s") == ""
    assert without_token("") == ""


# frames


def data_frame(payload: bytes, *, opcode: int = 2, fin: bool = True, mask: bytes | None = None) -> bytes:
    first = (0x80 if fin else 0) | opcode
    bit = 0x80 if mask is not None else 0
    if len(payload) < 126:
        head = bytes([first, bit | len(payload)])
    elif len(payload) < 65536:
        head = bytes([first, bit | 126]) + struct.pack("!H", len(payload))
    else:
        head = bytes([first, bit | 127]) + struct.pack("!Q", len(payload))
    return head + (mask or b"") + payload


def follower(*, masked: bool = False) -> tuple[FrameFollower, list[tuple[int, bytes]]]:
    seen: list[tuple[int, bytes]] = []
    return FrameFollower(masked=masked, on_control=lambda o, p: seen.append((o, p))), seen  # type: ignore[func-returns-value]


FRAMES = st.lists(
    st.one_of(
        st.binary(max_size=300).map(data_frame),
        st.binary(min_size=65530, max_size=65540).map(lambda p: data_frame(p, fin=False)),
        st.binary(max_size=125).map(lambda p: encode(PING, p, masked=False)),
    ),
    max_size=6,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(FRAMES, st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_bytes_pass_unchanged_however_they_are_cut(frames: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(frames)
    found, seen = follower()
    out, position, i = b"", 0, 0
    while position < len(whole):
        size = cuts[i % len(cuts)] * (1 if len(whole) < 5000 else 97)
        piece, _ = found.feed(whole[position : position + size])
        out, position, i = out + piece, position + size, i + 1
    assert out == whole and found.at_boundary
    assert len(seen) == sum(frame[0] == 0x89 for frame in frames)


@given(st.binary(min_size=1, max_size=1000), st.integers(1, 999))
def test_a_frame_of_our_own_lands_between_two_frames(payload: bytes, cut: int) -> None:
    ping = encode(PING, b"hub", masked=False)
    whole = data_frame(payload) + data_frame(b"next")
    found, _ = follower()
    first, _ = found.feed(whole[:cut])
    if found.at_boundary or cut >= len(data_frame(payload)):
        return
    second, injected = found.feed(whole[cut:], ping)
    assert injected
    assert first + second == data_frame(payload) + ping + data_frame(b"next")


def test_nothing_follows_a_close() -> None:
    close = encode(CLOSE, close_payload(4409, "other history"), masked=False)
    found, seen = follower()
    out, _ = found.feed(data_frame(b"a") + close + data_frame(b"b"))
    assert out == data_frame(b"a") + close and found.closed
    assert seen == [(CLOSE, struct.pack("!H", 4409) + b"other history")]
    assert found.feed(b"anything") == (b"", False)


def test_masked_control_frames_are_read() -> None:
    found, seen = follower(masked=True)
    frame = encode(CLOSE, close_payload(1000, "bye"), masked=True)
    assert found.feed(frame)[0] == frame
    assert seen == [(CLOSE, b"\x03\xe8bye")]


@pytest.mark.parametrize(
    "bad",
    [
        data_frame(b"x", mask=b"abcd"),  # masked, from a server
        bytes([0x09, 0]),  # fragmented ping
        bytes([0x89, 126, 0, 200]),  # ping of 200 bytes
        bytes([0x83, 0]),  # unknown opcode
        bytes([0x8B, 0]),
        bytes([0x82, 127]) + b"\xff" * 8,  # longer than 2^63
    ],
)
def test_what_is_no_frame_is_refused_at_a_boundary(bad: bytes) -> None:
    found, _ = follower()
    with pytest.raises(FrameError):
        found.feed(bad)
    assert found.at_boundary


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 5000])
def test_reserved_codes_never_go_out(code: int) -> None:
    assert repaired_close(struct.pack("!H", code)) == struct.pack("!H", 1011)
    with pytest.raises(ValueError):
        close_payload(code)


def test_other_codes_pass() -> None:
    assert repaired_close(b"") is None
    assert repaired_close(b"\x03") is not None
    for code in (1000, 1001, 1012, 3000, 4403, 4409, 4999):
        assert repaired_close(struct.pack("!H", code) + b"why") is None
    assert len(close_payload(1000, "ä" * 200)) <= 125


def test_empty_frames_cost_time_and_ordinary_ones_do_not() -> None:
    follower = FrameFollower(masked=False, on_control=lambda _opcode, _payload: None)
    pace, now = Pace(follower, 65536), 100.0
    follower.feed(b"\x82\x00" * 9_000)
    assert pace.pause(now) == 0 and pace.size == 4096
    waited = 0.0
    for _ in range(50):
        follower.feed(b"\x82\x00" * 2048)
        pause = pace.pause(now)
        now, waited = now + pause, waited + pause
    assert waited == pytest.approx((9_000 + 50 * 2048 - Pace.BURST) / Pace.RATE)
    # after a rest everything is as before
    follower.feed(b"\x82\x7e\xff\x00" + bytes(0xFF00))
    assert pace.pause(now + 60) == 0 and pace.size == 65536


def test_many_large_frames_never_wait() -> None:
    follower = FrameFollower(masked=False, on_control=lambda _opcode, _payload: None)
    pace = Pace(follower, 65536)
    for _ in range(2000):
        follower.feed((b"\x82\x7e\x04\x00" + bytes(1024)) * 60)
        assert pace.pause(1.0 + follower.frames / 4_000) == 0
        assert pace.size == 65536
