"""Hostile plaintext HTTP/2 with hand-made frames: a table of attacks, and a strict HTTP/1.1
upstream."""

import dataclasses
import socket
import struct
import time

import hpack
import pytest

from support import raw
from support.keylatch import Keylatch
from support.strict import Strict

LIMITS = "{header_timeout: 1s, body_timeout: 1s, idle_timeout: 2s}"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, WITH_PRIORITY = 0x4, 0x8, 0x20
# Outcomes of an attack, besides the status of an answer.
RESET, AWAY, CLOSED = "reset", "goaway", "closed"
MALFORMED = {RESET, AWAY, 400}
BROKEN = {AWAY, CLOSED}
EITHER = {200, RESET, AWAY, 400}


def frame(kind, flags=0, stream=0, payload=b"", size=None):
    return struct.pack("!I", len(payload) if size is None else size)[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def block(fields):
    """A header block that does not use the dynamic table."""
    return hpack.Encoder().encode([(name, value, True) for name, value in fields], huffman=False)


def headers(fields, stream=1, end=True, payload=None):
    """A header block in one HEADERS frame, followed by CONTINUATION frames if needed."""
    payload = block(fields) if payload is None else payload
    pieces = [payload[n : n + 16384] for n in range(0, len(payload), 16384)] or [b""]
    out = b""
    for number, piece in enumerate(pieces):
        flags = END_HEADERS if number == len(pieces) - 1 else 0
        if number == 0:
            out += frame(HEADERS, flags | (END_STREAM if end else 0), stream, piece)
        else:
            out += frame(CONTINUATION, flags, stream, piece)
    return out


def data(body, stream=1, end=True):
    return frame(DATA, END_STREAM if end else 0, stream, body)


def fields(*more, method="GET", path="/v1/x", authority="localhost", scheme="http"):
    """The fields of a request. A pseudo field that is None is left out."""
    pseudo = [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path)]
    return [(name, value) for name, value in pseudo if value is not None] + list(more)


def window(stream, increment):
    return frame(WINDOW_UPDATE, 0, stream, struct.pack("!I", increment))


def setting(number, value):
    return struct.pack("!HI", number, value)


@dataclasses.dataclass(frozen=True)
class Case:
    """One attack on a new connection, after the preface and the settings unless `bare`.

    `pieces` are bytes and pauses. `outcome` lists the permitted outcomes of stream `stream`.
    `reaches` are the requests (method, target, body) that the upstream sees if and only if the
    answer is 200; `cut` is the target of one that may arrive without its end; `flood` says that the
    upstream may see any number of `GET /v1/x`."""

    name: str
    pieces: tuple
    outcome: frozenset
    reaches: tuple = ()
    cut: str | None = None
    carries: tuple = ()
    flood: bool = False
    bare: bool = False
    stream: int = 1
    within: float = 0.9


def case(name, sent, outcome, reaches=(), **rest):
    pieces = sent if isinstance(sent, tuple) else (sent,)
    return Case(name, pieces, frozenset(outcome), tuple(reaches), **rest)


def got(path="/v1/x", method="GET", body=b""):
    return (method, path, body)


X, HELLO = got(), got(method="POST", body=b"hello")
ORDINARY = headers(fields())


def request(name, listed, outcome=MALFORMED, reaches=(), **rest):
    return case(name, headers(listed), outcome, reaches, **rest)


def post(name, more, body, outcome, reaches=(), **rest):
    sent = headers(fields(*more, method="POST"), end=False) + body
    return case(name, sent, outcome, reaches, **rest)


def pseudo_twice(name, value):
    listed = fields()
    return [*listed[:4], (name, value)]


PSEUDO = [
    request("ordinary", fields(), {200}, [X]),
    request("method_missing", fields(method=None)),
    request("path_missing", fields(path=None)),
    request("scheme_missing", fields(scheme=None)),
    request("method_twice", pseudo_twice(":method", "POST")),
    request("path_twice", pseudo_twice(":path", "/v1/y")),
    request("scheme_twice", pseudo_twice(":scheme", "https")),
    request("authority_twice", pseudo_twice(":authority", "evil")),
    request("pseudo_after_ordinary", [("x-a", "b"), *fields()]),
    request("path_after_ordinary", [*fields(path=None), ("x-a", "b"), (":path", "/v1/x")]),
    request("pseudo_unknown", pseudo_twice(":evil", "x")),
    request("pseudo_of_a_response", pseudo_twice(":status", "200")),
    request("pseudo_only_colon", pseudo_twice(":", "x")),
    request("authority_and_host_missing", fields(authority=None)),
    request("authority_missing_host_given", fields(("host", "localhost"), authority=None), {200}, [X], carries=(("host", "localhost"),)),
    request("authority_and_host_agree", fields(("host", "localhost")), {200}, [X], carries=(("host", "localhost"),)),
    request("authority_and_host_differ", fields(("host", "evil"))),
    request("authority_and_two_hosts", fields(("host", "localhost"), ("host", "localhost"))),
    request("authority_and_two_hosts_that_differ", fields(("host", "localhost"), ("host", "evil"))),
    request("authority_empty", fields(authority="")),
    request("authority_userinfo", fields(authority="user@localhost")),
    request("authority_slash", fields(authority="localhost/evil")),
    request("authority_bad_port", fields(authority="localhost:99999")),
    request("authority_crlf", fields(authority="localhost\r\nX-A: b")),
    request("host_space", fields(("host", "local host"), authority=None)),
    request("scheme_https", fields(scheme="https"), EITHER, [X]),
    request("scheme_unknown", fields(scheme="ftp"), EITHER, [X]),
    request("scheme_with_authority", fields(scheme="http://evil/?")),
    request("connect", [(":method", "CONNECT"), (":authority", "localhost:80")], {*MALFORMED, 405}),
    request("connect_with_path", fields(method="CONNECT"), {*MALFORMED, 405}),
    request("connect_with_protocol", [*fields(method="CONNECT"), (":protocol", "websocket")], {*MALFORMED, 405}),
    request("trace", fields(method="TRACE"), {405}),
    request("method_empty", fields(method="")),
    request("method_with_a_line", fields(method="GET /v1/evil HTTP/1.1\r\nHost: evil\r\n\r\nGET")),
    request("method_with_space", fields(method="GET /v1/evil")),
    request("method_lower_case", fields(method="get"), {*EITHER, 405, 501}, [got(method="get")]),
]

PATHS = [
    request(f"path_{name}", fields(path=path), outcome, reaches)
    for name, path, outcome, reaches in [
        ("empty", "", MALFORMED, []),
        ("star", "*", MALFORMED, []),
        ("without_slash", "v1/x", MALFORMED, []),
        ("at_evil", "@evil/v1/x", MALFORMED, []),
        ("absolute", "http://evil/v1/x", MALFORMED, []),
        # The h2 library drops a fragment before Keylatch can refuse it; over HTTP/1 it is refused.
        ("fragment", "/v1/x#f", EITHER, [X]),
        ("query_fragment", "/v1/x?a#f", EITHER, [got("/v1/x?a")]),
        ("dots", "/v1/a/../x", EITHER, [X]),
        ("dots_encoded", "/v1/a/%2e%2E/x", EITHER, [X]),
        ("dots_out_of_the_route", "/v1/../admin", {*MALFORMED, 404}, []),
        ("dots_above_root", "/../v1/x", MALFORMED, []),
        ("dots_semicolon", "/v1/..;/admin", MALFORMED, []),
        ("two_slashes", "//v1//x", EITHER, [X]),
        ("encoded_slash", "/v1/a%2fb", MALFORMED, []),
        ("encoded_backslash", "/v1/a%5cb", MALFORMED, []),
        ("backslash", "/v1/..\\admin", MALFORMED, []),
        ("encoded_nul", "/v1/a%00", MALFORMED, []),
        ("twice_encoded", "/v1/%252e%252e/admin", MALFORMED, []),
        ("overlong", "/v1/%c0%ae%c0%ae/admin", MALFORMED, []),
        ("space", "/v1/x HTTP/1.1", MALFORMED, []),
        ("tab", "/v1/x\ty", MALFORMED, []),
        ("nul", "/v1/x\0", MALFORMED, []),
        ("lines", "/v1/x HTTP/1.1\r\nHost: evil\r\n\r\nGET /v1/smuggled", MALFORMED, []),
        ("raw_utf8", "/v1/é", MALFORMED, []),
        ("query_raw_utf8", "/v1/x?é", MALFORMED, []),
        ("long", "/v1/" + "a" * 40_000, {*MALFORMED, 414, 431}, []),
    ]
]


def field(name, *more, outcome=MALFORMED, reaches=(), **rest):
    return request(f"field_{name}", fields(*more), outcome, reaches, **rest)


REAL = ("x-real-ip", "127.0.0.1")
BOMB = b"\x40\x03x-a\x7f\x81\x1e" + b"a" * 4000 + b"\xbe" * 12_000
FIELDS = [
    field("upper_case", ("X-A", "b")),
    field("connection", ("connection", "x-a")),
    field("connection_close", ("connection", "close")),
    field("keep_alive", ("keep-alive", "timeout=5")),
    field("proxy_connection", ("proxy-connection", "keep-alive")),
    field("transfer_encoding", ("transfer-encoding", "chunked")),
    field("upgrade", ("upgrade", "websocket")),
    field("te_gzip", ("te", "gzip")),
    field("te_trailers", ("te", "trailers"), outcome={200}, reaches=[X]),
    field("underscore_dropped", ("x_real_ip", "6.6.6.6"), outcome={200}, reaches=[X], carries=(REAL, ("x_real_ip", None))),
    field("address_is_overwritten", ("x-real-ip", "6.6.6.6"), outcome={200}, reaches=[X], carries=(REAL,)),
    field("cookie_crumbs_are_joined", ("cookie", "a=1"), ("cookie", "b=2"), outcome={200}, reaches=[X], carries=(("cookie", "a=1; b=2"),)),
    field("value_crlf", ("x-a", "b\r\nX-Real-IP: 6.6.6.6")),
    field("value_lf", ("x-a", "b\nx")),
    field("value_cr", ("x-a", "b\rx")),
    field("value_nul", ("x-a", "b\0x")),
    field("value_spaces_around", ("x-a", " b "), outcome=EITHER, reaches=[X]),
    field("name_empty", ("", "b")),
    field("name_crlf", ("x-a\r\nx-b", "b")),
    field("name_colon", ("x-a:b", "c")),
    field("name_space", ("x a", "b")),
    field("name_nul", ("x\0a", "b")),
    field("name_8bit", (b"x-\xe9", b"b")),
    field("one_hundred", *[(f"x-{n}", "a") for n in range(99)], outcome={200}, reaches=[X]),
    field("over_one_hundred", *[(f"x-{n}", "a") for n in range(101)], outcome={431}),
    field("below_32_kib", ("x-a", "a" * 30_000), outcome={200}, reaches=[X]),
    field("over_32_kib", ("x-a", "a" * 33_000), outcome={431, RESET, AWAY}),
    field("far_over_32_kib", ("x-a", "a" * 1_000_000), outcome={431, RESET, AWAY}),
    field("many_small_ones_over_32_kib", *[("x", "")] * 5000, outcome={431, RESET, AWAY}),
    case("hpack_bomb", headers(None, payload=block(fields()) + BOMB), {431, RESET, AWAY}),
    case("hpack_garbage", headers(None, payload=b"\xff" * 40), BROKEN),
    case("hpack_index_beyond_the_table", headers(None, payload=block(fields()) + b"\xff\xff\x7f"), BROKEN),
    case("hpack_cut_off", headers(None, payload=block(fields())[:-3]), BROKEN),
    case("hpack_table_too_large", headers(None, payload=b"\x3f\xff\xff\xff\x7f" + block(fields())), BROKEN),
]

LENGTH5 = ("content-length", "5")
SHORT = {RESET, AWAY, 400}
BODIES = [
    post("body_with_length", [LENGTH5], data(b"hello"), {200}, [HELLO]),
    post("body_without_length", [], data(b"hello"), {200}, [HELLO]),
    post("body_in_single_bytes", [], b"".join(data(b"%c" % b, end=False) for b in b"hello") + data(b""), {200}, [HELLO]),
    # Many clients end a body with an empty DATA frame. It must not become a second last chunk,
    # which would begin the next request.
    post("body_ends_with_empty_data", [], data(b"hello", end=False) + data(b""), {200}, [HELLO]),
    post("body_of_empty_data", [], data(b""), {200}, [got(method="POST")]),
    post("body_with_length_ends_with_empty_data", [LENGTH5], data(b"hello", end=False) + data(b""), {200}, [HELLO]),
    post("body_with_empty_data_inside", [], (data(b"hel", end=False) + data(b"", end=False) + data(b"lo")), {200}, [HELLO]),
    post("body_less_than_length", [LENGTH5], data(b"hel"), SHORT, cut="/v1/x"),
    post("body_more_than_length", [LENGTH5], data(b"hello, hello"), SHORT, cut="/v1/x"),
    post("body_more_than_length_later", [LENGTH5], data(b"hello", end=False) + data(b"GET /v1/smuggled HTTP/1.1\r\n\r\n"), SHORT,
         cut="/v1/x"),
    request("body_none_but_length", fields(LENGTH5, method="POST"), SHORT, cut="/v1/x"),
    post("length_twice", [LENGTH5, LENGTH5], data(b"hello"), MALFORMED),
    post("length_twice_that_differ", [LENGTH5, ("content-length", "0")], data(b"hello"), MALFORMED),
    post("length_list", [("content-length", "5, 5")], data(b"hello"), MALFORMED),
    post("length_plus", [("content-length", "+5")], data(b"hello"), MALFORMED),
    post("length_negative", [("content-length", "-5")], data(b"hello"), MALFORMED),
    post("length_overflows", [("content-length", "18446744073709551621")], data(b"hello"), MALFORMED),
    post("length_over_the_limit", [("content-length", "67108865")], b"", {413, RESET}),
    post("chunked_inside", [], data(b"0\r\n\r\nGET /v1/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"), {200},
         [got(method="POST", body=b"0\r\n\r\nGET /v1/smuggled HTTP/1.1\r\nHost: a\r\n\r\n")]),
    case("get_with_data", headers(fields(), end=False) + data(b"hello"), EITHER, [got(body=b"hello")]),
    post("trailers", [], data(b"hello", end=False) + headers([("x-a", "b")]), EITHER, [HELLO], cut="/v1/x"),
    post("trailers_with_pseudo", [], data(b"hello", end=False) + headers([(":path", "/v1/y")]), EITHER, [HELLO], cut="/v1/x"),
    post("trailers_with_framing", [], data(b"hello", end=False) + headers([LENGTH5, ("x-real-ip", "6.6.6.6")]), EITHER, [HELLO],
         cut="/v1/x"),
    post("trailers_without_end", [], data(b"hello", end=False) + headers([("x-a", "b")], end=False), MALFORMED, cut="/v1/x"),
    post("expect_continue", [LENGTH5, ("expect", "100-continue")], data(b"hello"), {200}, [HELLO]),
    post("reset_by_the_client", [], data(b"hel", end=False) + frame(RST_STREAM, 0, 1, b"\0\0\0\x08") + headers(fields(), 3), {200}, [X],
         cut="/v1/x", stream=3),
]

OTHERS = [
    case("unknown_frame_type", frame(0xFA, 0xFF, 0, b"anything") + frame(0xFB, 0, 1, b"") + ORDINARY, {200}, [X]),
    case("unknown_setting", frame(SETTINGS, 0, 0, setting(0xFAFA, 1)) + ORDINARY, {200}, [X]),
    case("data_on_stream_0", data(b"x", 0), BROKEN),
    case("headers_on_stream_0", headers(fields(), 0), BROKEN),
    case("headers_on_even_stream", headers(fields(), 2), {*BROKEN, RESET}, stream=2),
    case("data_on_idle_stream", data(b"x", 1), BROKEN),
    case("data_after_end", ORDINARY + data(b"x"), {200, RESET, AWAY, CLOSED}, [X]),
    case("headers_after_end", ORDINARY + ORDINARY, {200, RESET, AWAY, CLOSED}, [X]),
    case("stream_numbers_go_back", headers(fields(), 3) + ORDINARY, {200, RESET, AWAY, CLOSED}, [X], stream=3),
    case("continuation_alone", frame(CONTINUATION, END_HEADERS, 1, block(fields())), BROKEN),
    case("continuation_of_another_stream", frame(HEADERS, END_STREAM, 1, block(fields())) + frame(CONTINUATION, END_HEADERS, 3, b""),
         BROKEN),
    case("continuation_interrupted", frame(HEADERS, END_STREAM, 1, block(fields())) + frame(PING, 0, 0, b"x" * 8), BROKEN),
    case("push_promise", frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack("!I", 2) + block(fields())), BROKEN),
    case("settings_bad_length", frame(SETTINGS, 0, 0, b"x" * 5), BROKEN),
    case("settings_on_a_stream", frame(SETTINGS, 0, 1, b""), BROKEN),
    case("settings_ack_with_payload", frame(SETTINGS, ACK, 0, setting(1, 1)), BROKEN),
    case("settings_push_2", frame(SETTINGS, 0, 0, setting(2, 2)), BROKEN),
    case("settings_window_too_large", frame(SETTINGS, 0, 0, setting(4, 1 << 31)), BROKEN),
    case("settings_frame_size_too_small", frame(SETTINGS, 0, 0, setting(5, 1)), BROKEN),
    case("settings_table_huge", frame(SETTINGS, 0, 0, setting(1, (1 << 32) - 1)) + ORDINARY, {200}, [X]),
    case("ping_bad_length", frame(PING, 0, 0, b"x" * 7), BROKEN),
    case("ping_on_a_stream", frame(PING, 0, 1, b"x" * 8), BROKEN),
    case("rst_on_idle_stream", frame(RST_STREAM, 0, 1, b"\0\0\0\x08"), BROKEN),
    case("rst_bad_length", ORDINARY + frame(RST_STREAM, 0, 1, b"\0" * 5), BROKEN | {200}, [X], cut="/v1/x", flood=True),
    case("frame_too_large", frame(DATA, 0, 1, b"x" * 16_385), BROKEN),
    case("frame_that_says_16_mib", frame(DATA, 0, 1, b"x", size=(1 << 24) - 1), BROKEN),
    case("padding_too_large", frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, b"\xff" + block(fields())), BROKEN | {RESET}),
    case("padding_ordinary", frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, b"\x04" + block(fields()) + b"\0" * 4), {200}, [X]),
    case("priority_on_itself", frame(HEADERS, END_HEADERS | END_STREAM | WITH_PRIORITY, 1, struct.pack("!IB", 1, 1) + block(fields())),
         {200, RESET, AWAY}, [X]),
    case("window_update_zero", window(0, 0), BROKEN),
    case("window_overflow", window(0, (1 << 31) - 1) + window(0, (1 << 31) - 1), BROKEN),
    post("window_overflow_of_a_stream", [], window(1, (1 << 31) - 1) + window(1, (1 << 31) - 1), {RESET, AWAY, CLOSED}, cut="/v1/x"),
    post("window_overrun", [], b"".join(data(b"x" * 16_384, end=False) for _ in range(40)) + data(b"x"), {200, RESET, AWAY, CLOSED},
         [got(method="POST", body=b"x" * (40 * 16_384 + 1))], cut="/v1/x"),
    case("window_of_nothing_then_opened", frame(SETTINGS, 0, 0, setting(4, 0)) + ORDINARY + window(1, 100), {200}, [X]),
    case("http1_instead_of_settings", PREFACE + b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n", BROKEN, bare=True),
    case("preface_twice", PREFACE + ORDINARY, BROKEN),
    case("no_settings", PREFACE + ORDINARY, BROKEN | {200}, [X], bare=True),
]

CANCEL = frame(RST_STREAM, size=4)[:5]  # The stream id and the error code follow.
FLOOD = {200, RESET, AWAY, CLOSED, 431}
FLOODS = [
    case("continuation_flood",
         frame(HEADERS, END_STREAM, 1, block(fields())) + frame(CONTINUATION, 0, 1, block([("x-a", "b" * 100)])) * 5000,
         {431, RESET, AWAY, CLOSED}),
    case("continuation_flood_empty", frame(HEADERS, END_STREAM, 1, block(fields())) + frame(CONTINUATION, 0, 1) * 5000,
         {431, RESET, AWAY, CLOSED}),
    case("rapid_reset", b"".join(headers(fields(), n) + CANCEL + struct.pack("!II", n, 8) for n in range(1, 4001, 2)), BROKEN, flood=True,
         stream=4001),
    case("streams_over_the_limit", b"".join(headers(fields(method="POST"), n, end=False) for n in range(1, 1201, 2)), {RESET, AWAY, CLOSED},
         cut="/v1/x", flood=True, stream=1199),
    case("reset_by_mistakes", b"".join(headers(fields(("connection", "x")), n) for n in range(1, 4001, 2)), BROKEN | {RESET}, stream=3999),
    case("settings_flood", frame(SETTINGS, 0, 0, setting(4, 65_535)) * 5000 + ORDINARY, FLOOD, [X]),
    case("settings_flood_that_moves_windows", b"".join(frame(SETTINGS, 0, 0, setting(4, n)) for n in range(2000)) + ORDINARY, FLOOD, [X]),
    case("ping_flood", frame(PING, 0, 0, b"x" * 8) * 5000 + ORDINARY, FLOOD, [X]),
    case("priority_flood", b"".join(frame(PRIORITY, 0, n, b"\0\0\0\0\1") for n in range(1, 10_001, 2)) + headers(fields(), 10_001), FLOOD,
         [X],
         stream=10_001),
    case("window_update_flood", window(0, 1) * 5000 + ORDINARY, FLOOD, [X]),
    post("empty_data_flood", [], data(b"", end=False) * 5000 + data(b"hello"), FLOOD, [HELLO], cut="/v1/x", within=2.0),
    post("padding_only_data_flood", [], frame(DATA, PADDED, 1, b"\xc8" + b"\0" * 200) * 300 + data(b"hello"), FLOOD, [HELLO], cut="/v1/x",
         within=2.0),
    case("unknown_frames_flood", frame(0xFA, 0, 0, b"x" * 100) * 5000 + ORDINARY, FLOOD, [X]),
]

SILENCE = [
    case("silence_after_preface", PREFACE, BROKEN, bare=True, within=3.0),
    case("silence_after_settings", b"", BROKEN, within=3.0),
    case("silence_in_a_frame", b"\0\0", BROKEN, within=3.0),
    case("silence_in_a_header", frame(HEADERS, END_STREAM, 1, block(fields())), {*BROKEN, RESET, 408}, within=3.0),
    case("pings_do_not_keep_it_open", (frame(PING, 0, 0, b"x" * 8), 0.8) * 3, BROKEN, within=1.0),
    post("silence_in_a_body", [], data(b"hel", end=False), {408, RESET, AWAY, CLOSED}, cut="/v1/x", within=1.7),
    post("silence_before_a_body", [LENGTH5], b"", {408, RESET, AWAY, CLOSED}, cut="/v1/x", within=1.7),
]

CASES = PSEUDO + PATHS + FIELDS + BODIES + OTHERS + FLOODS + SILENCE


@pytest.fixture(scope="module")
def upstream():
    with Strict() as strict:
        yield strict


@pytest.fixture(scope="module")
def keylatch(upstream, tmp_path_factory):
    with Keylatch(tmp_path_factory.mktemp("hostile_h2"), upstream.port, limits=LIMITS) as running:
        yield running


def read_exactly(connection, count):
    """Reads `count` bytes; None at the end of the connection."""
    out = b""
    while len(out) < count:
        try:
            piece = connection.recv(count - len(out))
        except (ConnectionResetError, BrokenPipeError):
            return None
        if not piece:
            return None
        out += piece
    return out


def outcome_of(connection, stream, seconds):
    """The outcome of the stream: its status once it is complete, or how it or the connection
    ends."""
    decoder, status, end = hpack.Decoder(), None, time.monotonic() + seconds
    while True:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        start = read_exactly(connection, 9)
        payload = read_exactly(connection, int.from_bytes(start[:3])) if start else None
        if payload is None:
            return CLOSED
        kind, flags, number = struct.unpack("!BBI", start[3:])
        if kind == GOAWAY and int.from_bytes(payload[4:8]) != 0:
            return AWAY
        if kind == HEADERS:
            listed = dict(decoder.decode(payload))
            status = int(listed[":status"]) if number == stream else status
        if kind == SETTINGS and not flags & ACK:
            send(connection, (frame(SETTINGS, ACK),))
        if number == stream and kind == RST_STREAM:
            # An answer before the end of its request is often followed by RST_STREAM with NO_ERROR.
            return status if status and status >= 400 else RESET
        if number == stream and kind in (HEADERS, DATA) and flags & END_STREAM and status and status >= 200:
            return status


def send(connection, pieces):
    """Sends the pieces; the proxy may close the connection before the last one."""
    try:
        for piece in pieces:
            if isinstance(piece, float):
                time.sleep(piece)
            else:
                connection.sendall(piece)
    except (BrokenPipeError, ConnectionResetError):
        pass


def exchange(port, attack):
    with raw.connect(port, timeout=5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        send(connection, () if attack.bare else (PREFACE + frame(SETTINGS),))
        send(connection, attack.pieces)
        try:
            return outcome_of(connection, attack.stream, attack.within)
        except TimeoutError:
            raise AssertionError(f"neither answered nor closed within {attack.within} s") from None


def quiet(upstream):
    """Waits until no request of a flood reaches the upstream, so that none is attributed to the
    next case."""
    end, count = time.monotonic() + 3, None
    while count != (count := len(upstream.requests)):
        assert time.monotonic() < end, "a flood continues after its client has left"
        time.sleep(0.2)


def probe(port):
    """An ordinary request over HTTP/2, and one over HTTP/1."""
    with raw.connect(port, timeout=5) as connection:
        send(connection, (PREFACE + frame(SETTINGS) + headers(fields(path="/v1/probe")),))
        assert outcome_of(connection, 1, 5) == 200, "an ordinary request after the attack, HTTP/2"
    answer = raw.request(port, "/v1/probe", method="POST", body=b"probe")
    assert (answer.status, answer.body) == (200, b"ok"), "an ordinary request after the attack, HTTP/1"


@pytest.mark.parametrize("attack", CASES, ids=[attack.name for attack in CASES])
def test_hostile(keylatch, upstream, attack):
    requests, errors = len(upstream.requests), len(upstream.errors)
    outcome = exchange(keylatch.port, attack)
    assert keylatch.process.poll() is None, "the process has ended"
    probe(keylatch.port)
    if attack.flood:
        quiet(upstream)
    seen = [seen for seen in upstream.requests[requests:] if seen.target != "/v1/probe"]
    assert upstream.errors[errors:] == [], "the upstream saw something malformed"
    assert outcome in attack.outcome, f"{outcome}; the upstream saw {seen}"
    whole = [request.brief() for request in seen if request.whole]
    part = [request.target for request in seen if not request.whole]
    if attack.flood:
        assert set(whole) <= {X} and set(part) <= {attack.cut, "/v1/x"}, f"the upstream saw {seen}"
        return
    assert all(path == attack.cut for path in part) and len(part) <= 1, f"unfinished at the upstream: {seen}"
    # A connection error may precede the answer to a valid request.
    assert whole == (list(attack.reaches) if outcome == 200 else whole and list(attack.reaches)), f"{outcome}; the upstream saw {seen}"
    for name, value in attack.carries if whole else ():
        assert seen[0].all(name) == ([] if value is None else [value]), f"{name}: {seen[0]}"


def test_nothing_panicked_and_the_upstream_saw_no_error(keylatch, upstream):
    assert upstream.errors == []
    assert "panicked" not in keylatch.stderr.read_text() + keylatch.stdout.read_text()
    assert len({attack.name for attack in CASES}) == len(CASES) >= 20


def test_a_stream_error_does_not_affect_other_streams(keylatch):
    with raw.connect(keylatch.port, timeout=5) as connection:
        send(connection, (PREFACE + frame(SETTINGS) + headers(fields(path="/v1/slow")) + headers(fields(("connection", "x")), 3),))
        assert outcome_of(connection, 1, 2) == 200


def test_floods_do_not_grow_memory(keylatch, upstream):
    """Twenty connections flood at once and stay open; other clients are served, and memory does not
    grow."""
    before, open_ones, errors = keylatch.memory_kib(), [], len(upstream.errors)
    flood = frame(HEADERS, END_STREAM, 1, block(fields())) + frame(CONTINUATION, 0, 1, block([("x-a", "b" * 1000)])) * 1000
    try:
        for _ in range(20):
            connection = raw.connect(keylatch.port, timeout=5)
            open_ones.append(connection)
            send(connection, (PREFACE + frame(SETTINGS) + flood,))
        probe(keylatch.port)
        # The floods send 20 MB in all; without a limit, decoded headers would take several times
        # that.
        assert keylatch.memory_kib() - before < 32 * 1024
    finally:
        for connection in open_ones:
            connection.close()
    assert upstream.errors[errors:] == []
