"""The runner's parts without I/O."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pod_runtime.runner import heads, messages, project
from pod_runtime.runner.idle_page import plain
from pod_runtime.runner.output import OutputBuffer
from pod_runtime.runner.ports import parse_address, parse_listening
from pod_runtime.runner.replay import Tail, is_terminal_reply
from pod_runtime.runner.run import looks_like_prompt

PIECES = st.sampled_from(
    [
        b"plain ",
        "ü日🚀".encode(),
        b"\x1b[1;31m",
        b"\x1b]0;a title\x07",
        b"\x1b]8;;http://x\x1b\\",
        b"\r\n",
        b"\x1b(B",
    ]
)


@given(st.lists(PIECES, max_size=80), st.integers(1, 60), st.integers(0, 20))
def test_tail_is_bounded_and_starts_at_a_boundary(pieces: list[bytes], limit: int, slack: int) -> None:
    tail = Tail(limit, slack)
    for piece in pieces:
        tail.feed(piece)
        assert len(tail) <= limit + slack
    shown = tail.text().encode()
    assert b"".join(pieces).endswith(shown)
    # what is shown is whole pieces, but for plain text, which may be cut between characters
    starts = {b"".join(pieces[i:]) for i in range(len(pieces) + 1)}
    texts = [p for p in pieces if not p.startswith(b"\x1b")]
    cut = {t.decode()[i:].encode() for t in texts for i in range(len(t.decode()))}
    assert shown in starts or any(shown.startswith(c) for c in cut)


def test_tail_leaves_out_queries() -> None:
    tail = Tail()
    tail.feed(b"a\x1b[cb\x1b[6nc\x1b]11;?\x07d\x1bP$qm\x1b\\e\x1b[?25hf\x1b]52;c;?\x07g\xf0\x9f")
    assert tail.text() == "abcde\x1b[?25hfg"


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("\x1b[?1;2c", True),
        ("\x1b[24;80R", True),
        ("\x1b]11;rgb:0000/0000/0000\x1b\\", True),
        ("\x1b[A", False),
        ("\x1b[?1;2cls", False),
        ("R", False),
        ("", False),
        ("\x1b", False),
    ],
)
def test_terminal_replies(text: str, reply: bool) -> None:
    assert is_terminal_reply(text) is reply


@settings(max_examples=50)
@given(st.text(max_size=200), st.lists(st.integers(1, 10), max_size=40))
def test_output_arrives_whole_when_it_is_little(text: str, cuts: list[int]) -> None:
    text = text.encode("utf-8", "replace").decode()
    data, buffer, seen, now = text.encode(), OutputBuffer(), "", 0.0
    for cut in cuts:
        buffer.add("stdout", data[:cut])
        data = data[cut:]
        now += 0.03
        seen += "".join(t for _, t in buffer.take(now))
    buffer.add("stdout", data, final=True)
    seen += "".join(t for _, t in buffer.take(now, final=True))
    assert seen == text


def test_output_keeps_the_order_of_streams_and_joins_neighbours() -> None:
    buffer = OutputBuffer()
    for name, text in (("stdout", b"1"), ("stdout", b"2"), ("stderr", b"3"), ("stdout", b"4")):
        buffer.add(name, text)
    assert buffer.take(0) == [("stdout", "12"), ("stderr", "3"), ("stdout", "4")]
    assert buffer.take(1, final=True) == []


def test_output_flood_loses_the_middle_and_says_so() -> None:
    buffer, got = OutputBuffer(rate=100, burst=1000, keep=200), ""
    for n in range(1000):
        buffer.add("stdout", b"line %d\n" % n)
        got += "".join(t for _, t in buffer.take(n * 0.001))
        assert buffer.size < 1100
    got += "".join(t for _, t in buffer.take(1.0, final=True))
    assert got.startswith("line 0\nline 1\n") and got.endswith("line 998\nline 999\n")
    assert "left out" in got and len(got) < 2500


def test_undecodable_output() -> None:
    buffer = OutputBuffer()
    buffer.add("stdout", b"a\xffb\xc3")
    buffer.add("stdout", b"", final=True)
    assert buffer.take(0) == [("stdout", "a\ufffdb\ufffd")]


def _message(buffers: tuple[bytes, ...] = ()) -> messages.Message:
    header = json.dumps({"msg_id": "1", "msg_type": "x_request"}).encode()
    return messages.Message("shell", header, b"{}", b"{}", '{"ü":1}'.encode(), buffers)


@pytest.mark.parametrize("buffers", [(), (b"", b"abc\0")])
def test_frames_of_both_framings(buffers: tuple[bytes, ...]) -> None:
    message = _message(buffers)
    request = messages.parse_v1(message.v1_frame())
    assert (request.channel, request.msg_type, request.content, request.buffers) == (
        "shell",
        "x_request",
        {"ü": 1},
        buffers,
    )
    frame = message.json_frame()
    parsed = messages.parse_binary(frame) if isinstance(frame, bytes) else messages.parse_json(frame)
    assert parsed == request


def test_v1_frame_has_the_layout_of_jupyter_server() -> None:
    frame = _message().v1_frame()
    (count,) = struct.unpack_from("<Q", frame)
    offsets = struct.unpack_from(f"<{count}Q", frame, 8)
    assert count == 6 and offsets[0] == 8 * 7 and offsets[-1] == len(frame)
    assert frame[offsets[0] : offsets[1]] == b"shell"


@given(st.binary(max_size=200))
def test_random_frames_are_refused(frame: bytes) -> None:
    for parse in (messages.parse_v1, messages.parse_binary, messages.parse_json):
        with pytest.raises(messages.BadFrame):
            parse(frame)


@given(st.binary(max_size=300))
def test_random_heads_are_refused_or_harmless(data: bytes) -> None:
    for head in (data, b"GET / HTTP/1.1\r\nHost: a\r\n" + data + b"\r\n\r\n"):
        try:
            request = heads.parse_request(head)
        except heads.BadHead:
            continue
        out = heads.forwarded_request(request, 3000)
        assert out.count(b"\r\n\r\n") == 1 and out.endswith(b"\r\n\r\n")
        assert out.count(b"Host: localhost:3000\r\n") == 1
        assert b"\r\ncodevo-" not in out.lower()


def test_fields_named_by_connection_go_but_not_the_host() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Hop, host\r\nX-Hop: 1\r\nTE: trailers\r\nX: 2\r\n\r\n"
    out = heads.forwarded_request(heads.parse_request(head), 80)
    assert out == b"GET / HTTP/1.1\r\nHost: localhost:80\r\nX: 2\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    "line", [b"\r\n", b"-1\r\n", b"0x3\r\n", b" 3\r\n", b"3", b"3\n", b"g\r\n", b"1" * 16 + b"\r\n"]
)
def test_bad_chunk_sizes(line: bytes) -> None:
    with pytest.raises(heads.BadHead):
        heads.parse_chunk_size(line)
    assert heads.parse_chunk_size(b"1F;name=value\r\n") == 31


def test_proc_net_tables() -> None:
    head = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    )
    row = "0: {} 00000000:0000 {} 00000000:00000000 00:00000000 00000000 0 0 {} 1 0 100 0 0 10 0\n"
    table = (
        head + row.format("0100007F:0BB8", "0A", 11) + row.format("00000000:0050", "01", 12) + "junk\nzz zz\n"
    )
    [found] = parse_listening(table)
    assert (found.address, found.port, found.inode) == ("127.0.0.1", 3000, 11)
    assert parse_address("00000000000000000000000001000000:1F90") == ("::1", 8080)


def test_plans(tmp_path: Path) -> None:
    def run(code: str = "") -> tuple[str, ...]:
        return project.plan(tmp_path, code, None).commands

    with pytest.raises(project.ProjectError):
        run()
    (tmp_path / "index.html").touch()
    assert "http.server" in run()[0]
    (tmp_path / "Makefile").touch()
    assert run() == ("make",)
    (tmp_path / "package.json").write_text('{"scripts": {"start": "x"}, "dependencies": {"a": "1"}}')
    assert run() == ("npm run start",)
    assert project.plan(tmp_path, "", None).needs_dependencies
    (tmp_path / "package.json").write_text("{")
    with pytest.raises(project.ProjectError, match=r"package\.json"):
        run()
    (tmp_path / "package.json").write_text("[]")
    (tmp_path / "main.py").touch()
    assert run()[0].endswith(" main.py")
    (tmp_path / "-x.py").touch()
    assert run("-x.py")[0].endswith(" ./-x.py")
    assert run("ls -x.py") == ("ls -x.py",)
    (tmp_path / "link.py").symlink_to("/etc/passwd")
    assert run("link.py") == ("link.py",)
    (tmp_path / "codevo.toml").write_text(
        '[run]\ncommand = "c"\nbuild = "b"\nport = 1\n[env]\nA = true\nB = 2\n'
    )
    plan = project.plan(tmp_path, "", None)
    assert (plan.commands, plan.port, plan.env) == (("b", "c"), 1, {"A": "true", "B": "2"})
    (tmp_path / "codevo.toml").write_text("#" * 300_000)
    with pytest.raises(project.ProjectError, match="larger"):
        run()


@pytest.mark.parametrize(
    ("line", "prompt"), [("name? ", True), ("> ", True), ("50%\r", False), ("done", False), ("", False)]
)
def test_prompts(line: str, prompt: bool) -> None:
    assert looks_like_prompt(line) is prompt


def test_plain_output() -> None:
    assert plain("\x1b[31mred\x1b[0m\x1b]0;t\x07\x07\n" * 2) == "red\nred"
    assert len(plain("x\n" * 1000).splitlines()) == 40
