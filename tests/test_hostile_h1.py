"""Hostile HTTP/1: a table of attacks and their permitted outcomes.

Each case is sent as raw bytes on a new connection. The upstream parses strictly, so bytes that two
servers could read differently are an error there. After each case an ordinary request must succeed,
also on upstream connections that the case has used."""

import asyncio
import dataclasses
import socket
import time
import uuid

import pytest

from support import raw
from support.keylatch import Keylatch, wait_for
from support.strict import Strict

LIMITS = "{header_timeout: 1s, body_timeout: 1s, idle_timeout: 2s}"
END = "end"  # A piece that means: the client closes its write side.
REFUSED = {400}
# Both outcomes are safe: the request is read by its plain meaning, or refused.
EITHER = {200, 400}
# The connection closes without an answer; permitted only if the client sent no HTTP.
SILENT = 0


@dataclasses.dataclass(frozen=True)
class Case:
    """One attack.

    `pieces` are bytes, pauses in seconds, or END. `reaches` are the requests (method, target, body)
    that the upstream may see, in this order: the first one if and only if the answer is 200, those
    after it may be missing. `cut` is the target of a request that may arrive without the end of its
    body. `fields` says what the first request must carry: a value, or None for a field that must
    not be there."""

    name: str
    pieces: tuple
    status: frozenset
    reaches: tuple = ()
    cut: str | None = None
    fields: tuple = ()
    closes: bool = True
    within: float = 0.9


def case(name, data, status=REFUSED, reaches=(), **rest):
    pieces = data if isinstance(data, tuple) else (data,)
    return Case(name, pieces, frozenset(status), tuple(reaches), **rest)


def head(line=b"GET /v1/x HTTP/1.1", *fields, host=b"Host: localhost"):
    """A request header. With `host` None it has no `Host` field."""
    lines = [line, *([host] if host is not None else []), *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def post(*fields, body=b"", version=b"HTTP/1.1"):
    return head(b"POST /v1/x " + version, *fields) + body


def target(text):
    return head(b"GET " + text + b" HTTP/1.1")


def got(path="/v1/x", method="GET", body=b""):
    return (method, path, body)


X, HELLO, EMPTY = got(), got(method="POST", body=b"hello"), got(method="POST")
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
SMUGGLED_LENGTH = b"Content-Length: %d" % len(SMUGGLED)
SECOND = b"GET /v1/second HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
HELLO_CHUNKED = b"5\r\nhello\r\n0\r\n\r\n"
TLS_HELLO = bytes.fromhex("1603010075010000710303") + bytes(range(32)) + bytes.fromhex("00000a1301130213031304c02b0100003e") + b"\x00" * 62


def length(value, body=b"hello"):
    return post(b"Content-Length: " + value, body=body)


def coding(line, body=HELLO_CHUNKED + SMUGGLED, version=b"HTTP/1.1"):
    return post(line, body=body, version=version)


def chunks(body):
    return post(CHUNKED, body=body)


def bad_chunks(name, body, status=REFUSED, **rest):
    """The header is valid and may be forwarded; the malformed body must not become a complete
    request."""
    return case(name, chunks(body), status, cut="/v1/x", **rest)


FRAMING = [
    case("cl_and_te", post(b"Content-Length: 4", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED)),
    case("te_and_cl", post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n" + SMUGGLED)),
    case("te_and_cl_with_odd_case", post(b"tRANSFER-eNCODING: cHUNKED", b"cONTENT-lENGTH: 5", body=b"0\r\n\r\n" + SMUGGLED)),
    case("two_lengths_that_differ", post(b"Content-Length: 5", b"Content-Length: 0", body=b"hello" + SMUGGLED)),
    case("two_lengths_that_agree", post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello")),
    case("length_plus", length(b"+5")),
    case("length_list", length(b"5, 5")),
    case("length_list_that_differs", length(b"5,0")),
    case("length_negative", length(b"-1")),
    case("length_minus_zero", length(b"-0", b"")),
    case("length_overflows_u64", length(b"99999999999999999999")),
    case("length_wraps_to_five", length(b"18446744073709551621")),
    case("length_overflows_i64", length(b"9223372036854775808"), {400, 413}),
    case("length_of_nineteen_nines", length(b"9999999999999999999"), {400, 413}),
    case("length_empty", length(b"", b"") + SMUGGLED),
    case("length_two_words", length(b"5 5")),
    case("length_hex", length(b"0x5")),
    case("length_float", length(b"5.0")),
    case("length_underscore", length(b"0_5")),
    case("length_arabic_digits", length("٥".encode())),
    case("length_leading_zeros", length(b"0000005"), EITHER, [HELLO]),
    case("length_tab_before_value", post(b"Content-Length:\t5", body=b"hello"), EITHER, [HELLO]),
    case("length_space_before_colon", post(b"Content-Length : 5", body=b"hello")),
    case("length_vertical_tab", post(b"Content-Length:\x0b5", body=b"hello")),
    case("length_underscore_name", post(b"Content_Length: 5", body=b"hello"), EITHER, [EMPTY]),
    case("te_gzip_chunked", coding(b"Transfer-Encoding: gzip, chunked")),
    case("te_chunked_gzip", coding(b"Transfer-Encoding: chunked, gzip")),
    case("te_chunked_chunked", coding(b"Transfer-Encoding: chunked, chunked")),
    case("te_twice", post(CHUNKED, CHUNKED, body=HELLO_CHUNKED)),
    case("te_twice_with_identity", post(CHUNKED, b"Transfer-Encoding: identity", body=HELLO_CHUNKED)),
    case("te_xchunked", coding(b"Transfer-Encoding: xchunked")),
    case("te_chunkedx", coding(b"Transfer-Encoding: chunkedx")),
    case("te_identity", coding(b"Transfer-Encoding: identity")),
    case("te_empty", coding(b"Transfer-Encoding: ")),
    case("te_comma", coding(b"Transfer-Encoding: ,chunked")),
    case("te_quoted", coding(b'Transfer-Encoding: "chunked"')),
    case("te_parameter", coding(b"Transfer-Encoding: chunked;q=1")),
    case("te_space_before_colon", coding(b"Transfer-Encoding : chunked")),
    case("te_tab_before_colon", coding(b"Transfer-Encoding\t: chunked")),
    case("te_space_before_name", coding(b" Transfer-Encoding: chunked")),
    case("te_vertical_tab", coding(b"Transfer-Encoding: \x0bchunked")),
    case("te_form_feed", coding(b"Transfer-Encoding: chunked\x0c")),
    case("te_nul", coding(b"Transfer-Encoding: chunked\0")),
    case("te_folded", coding(b"Transfer-Encoding:\r\n chunked")),
    case("te_in_a_fold", post(b"X-A: b\r\n Transfer-Encoding: chunked", body=SMUGGLED)),
    case("te_after_bare_cr", post(b"X-A: b\rTransfer-Encoding: chunked", body=SMUGGLED)),
    case("te_after_bare_lf", post(b"X-A: b\nTransfer-Encoding: chunked", body=HELLO_CHUNKED)),
    case("te_underscore_name", coding(b"Transfer_Encoding: chunked"), EITHER, [EMPTY]),
    case("te_tab_after_colon", coding(b"Transfer-Encoding:\tchunked", HELLO_CHUNKED), EITHER, [HELLO]),
    case("te_tab_after_value", coding(b"Transfer-Encoding: chunked\t", HELLO_CHUNKED), EITHER, [HELLO]),
    case("te_upper_case", coding(b"TRANSFER-ENCODING: CHUNKED", HELLO_CHUNKED), EITHER, [HELLO]),
    case("te_http10", coding(CHUNKED, version=b"HTTP/1.0")),
    case("te_http10_keep_alive", post(CHUNKED, b"Connection: keep-alive", body=HELLO_CHUNKED + SMUGGLED, version=b"HTTP/1.0")),
    case("http10_body_without_length", post(body=SMUGGLED, version=b"HTTP/1.0"), EITHER, [EMPTY]),
    case("http11_body_without_length", post(body=b"hello\r\n\r\n"), EITHER, [EMPTY]),
    case("get_with_a_body", head(b"GET /v1/x HTTP/1.1", SMUGGLED_LENGTH) + SMUGGLED, EITHER, [got(body=SMUGGLED)]),
    case("head_with_a_body", head(b"HEAD /v1/x HTTP/1.1", SMUGGLED_LENGTH) + SMUGGLED, EITHER, [got(method="HEAD", body=SMUGGLED)]),
    case("get_with_chunks", head(b"GET /v1/x HTTP/1.1", CHUNKED) + HELLO_CHUNKED, EITHER, [got(body=b"hello")]),
    case("upgrade_with_length", post(b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 5", body=b"hello" + SMUGGLED), EITHER,
         [HELLO]),
    case("upgrade_without_length", post(b"Connection: upgrade", b"Upgrade: anything", body=SMUGGLED), EITHER, [EMPTY]),
]

CHUNKS = [
    bad_chunks("chunk_size_not_hex", b"zz\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_negative", b"-5\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_plus", b"+5\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_0x", b"0x5\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_underscore", b"0_5\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_empty", b"\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_only_space", b" \r\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_only_extension", b";a\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_space_first", b" 5\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_huge", b"ffffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_wraps", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_largest", b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n", {400, 413}),
    bad_chunks("chunk_size_nul", b"5\0\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_bare_lf", b"5\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_bare_cr", b"5\rhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_size_line_of_cr_x_lf", b"5\rX\nhello\r\n0\r\n\r\n"),
    bad_chunks("chunk_data_ends_with_bare_lf", b"5\r\nhello\n0\r\n\r\n"),
    bad_chunks("chunk_data_without_crlf", b"5\r\nhello0\r\n\r\n"),
    bad_chunks("chunk_data_too_long", b"5\r\nhelloX\r\n0\r\n\r\n"),
    bad_chunks("chunk_last_bare_lf", b"5\r\nhello\r\n0\n\n"),
    bad_chunks("chunk_last_then_bare_lf", b"5\r\nhello\r\n0\r\n\n", {400, 408}, within=2.0),
    bad_chunks("chunk_extension_bare_lf", b"5;a\nhello\r\n0\r\n\r\n"),
    # To a server that accepts a bare LF as a line end, the second request is inside the second
    # chunk.
    case("chunk_extension_bare_lf_smuggles", (chunks(b"2;\nxx\r\n36\r\n0\r\n\r\n"), 0.2, SMUGGLED + b"\r\n0\r\n\r\n"), cut="/v1/x"),
    case("chunk_size_empty_smuggles", (chunks(b"\r\n\r\n"), 0.2, SMUGGLED), cut="/v1/x"),
    bad_chunks("chunk_extension_huge", b"5;" + b"a" * 100_000 + b"\r\nhello\r\n0\r\n\r\n", {400, 413}),
    case("chunk_size_space_after", chunks(b"5 \r\nhello\r\n0\r\n\r\n"), EITHER, [HELLO], cut="/v1/x"),
    case("chunk_size_leading_zeros", chunks(b"0005\r\nhello\r\n000\r\n\r\n"), EITHER, [HELLO], cut="/v1/x"),
    case("chunk_extension", chunks(b"5;a=b\r\nhello\r\n0;c\r\n\r\n"), EITHER, [HELLO], cut="/v1/x"),
    case("chunk_extension_quoted_line", chunks(b'5;a="\r\nhello\r\n0\r\n\r\n'), EITHER, [HELLO], cut="/v1/x"),
    case("chunk_trailer", chunks(b"5\r\nhello\r\n0\r\nX-A: b\r\n\r\n"), EITHER, [HELLO], cut="/v1/x"),
    case("chunk_trailer_with_framing", chunks(b"5\r\nhello\r\n0\r\nContent-Length: 50\r\nX-Real-IP: 6.6.6.6\r\n\r\n"), EITHER, [HELLO],
         cut="/v1/x"),
    case("chunk_trailer_garbage", chunks(b"5\r\nhello\r\n0\r\nno colon here\r\n\r\n"), EITHER, [HELLO], cut="/v1/x"),
    case("chunk_trailer_endless", chunks(b"5\r\nhello\r\n0\r\n" + b"X-A: b\r\n" * 20_000), {400, 408, 413, 431}, cut="/v1/x", within=2.0),
    case("chunks_in_single_bytes", (post(CHUNKED), *(bytes([b]) for b in HELLO_CHUNKED)), {200}, [HELLO]),
    case("chunks_cut_off", (chunks(b"5\r\nhel"), END), {SILENT, 400, 408}, cut="/v1/x"),
    case("length_cut_off", (length(b"5", b"hel"), END), {SILENT, 400, 408}, cut="/v1/x"),
]

TARGETS = [
    case("target_without_slash", target(b"a")),
    case("target_at_evil", target(b"@evil/a")),
    case("target_at_port", target(b":80/a")),
    case("target_star", target(b"*")),
    case("target_star_options", head(b"OPTIONS * HTTP/1.1")),
    case("target_authority", target(b"localhost:80")),
    case("target_absolute", target(b"http://localhost/v1/x"), {200}, [X]),
    case("target_absolute_upper_case", target(b"HTTP://LOCALHOST/v1/x"), EITHER, [X]),
    case("target_absolute_differs", target(b"http://evil/v1/x")),
    case("target_absolute_port_differs", target(b"http://localhost:81/v1/x")),
    case("target_absolute_without_host", head(b"GET http://localhost/v1/x HTTP/1.1", host=None)),
    case("target_absolute_https", target(b"https://localhost/v1/x"), {421}),
    case("target_absolute_ftp", target(b"ftp://localhost/v1/x")),
    case("target_absolute_userinfo", target(b"http://localhost@evil/v1/x")),
    case("target_absolute_userinfo_of_host", target(b"http://user@localhost/v1/x")),
    case("target_absolute_no_host", target(b"http:///v1/x")),
    case("target_absolute_one_slash", target(b"http:/v1/x")),
    case("target_absolute_dots", target(b"http://localhost/v1/../v1/x"), EITHER, [X]),
    case("target_absolute_backslash", target(b"http://localhost\\@evil/v1/x")),
    case("target_absolute_fragment", target(b"http://localhost#@evil/v1/x")),
    case("target_two_slashes", target(b"//v1//x"), EITHER, [X]),
    case("target_scheme_relative", target(b"//evil/v1/x"), {400, 404}, closes=False),
    case("target_dots", target(b"/v1/./a/../x"), EITHER, [X]),
    case("target_dots_out_of_the_route", target(b"/v1/../admin"), {400, 404}, closes=False),
    case("target_dots_above_root", target(b"/v1/../../v1/x")),
    case("target_dots_encoded", target(b"/v1/a/%2e%2e/x"), EITHER, [X]),
    case("target_dots_encoded_out_of_the_route", target(b"/v1/%2E%2e/admin"), {400, 404}, closes=False),
    case("target_dots_half_encoded", target(b"/v1/.%2e/%2e./v1/x")),
    case("target_dots_at_the_end", target(b"/v1/x/.."), EITHER, [got("/v1/")]),
    case("target_encoded_slash", target(b"/v1/a%2fb"), closes=False),
    case("target_dots_and_encoded_slash", target(b"/v1/..%2fadmin"), {400, 404}, closes=False),
    case("target_encoded_backslash", target(b"/v1/..%5cadmin")),
    case("target_backslash", target(b"/v1/..\\admin")),
    case("target_nul", target(b"/v1/x%00.png")),
    case("target_crlf_encoded", target(b"/v1/x%0d%0aX-A:b")),
    case("target_dots_semicolon", target(b"/v1/..;/admin")),
    case("target_dots_encoded_semicolon", target(b"/v1/%2e%2e%3b/admin"), EITHER, [got("/v1/%2e%2e%3b/admin")]),
    case("target_twice_encoded", target(b"/v1/%252e%252e/admin")),
    case("target_thrice_encoded", target(b"/v1/%25252e%25252e/admin")),
    case("target_overlong_dot", target(b"/v1/%c0%ae%c0%ae/admin")),
    case("target_overlong_slash", target(b"/v1/%e0%80%af/admin")),
    case("target_not_utf8", target(b"/v1/%ff")),
    case("target_surrogate", target(b"/v1/%ed%a0%80")),
    case("target_percent_u", target(b"/v1/%u002e%u002e/admin")),
    case("target_percent_alone", target(b"/v1/%")),
    case("target_percent_one_digit", target(b"/v1/%4")),
    case("target_percent_not_hex", target(b"/v1/%zz")),
    case("target_unreserved_encoded", target(b"/%76%31/%78"), EITHER, [got("/%76%31/%78")]),
    case("target_raw_space", target(b"/v1/a b")),
    case("target_raw_space_and_version", target(b"/v1/x HTTP/1.1 ")),
    case("target_raw_tab", target(b"/v1/a\tb")),
    case("target_raw_utf8", target("/v1/é".encode())),
    case("target_raw_del", target(b"/v1/\x7f")),
    case("target_raw_nul", target(b"/v1/x\0")),
    case("target_raw_quotes", target(b'/v1/<x>"'), EITHER, [got("/v1/%3Cx%3E%22")]),
    case("target_fragment", target(b"/v1/x#f")),
    case("target_query_fragment", target(b"/v1/x?a#f")),
    case("target_query_raw_utf8", target("/v1/x?é".encode())),
    case("target_query_stays", target(b"/v1/./x?a=/../%2e%2E//&b=%00?"), EITHER, [got("/v1/x?a=/../%2e%2E//&b=%00?")]),
    case("line_two_spaces", head(b"GET  /v1/x HTTP/1.1")),
    case("line_tabs", head(b"GET\t/v1/x\tHTTP/1.1")),
    case("line_space_first", head(b" GET /v1/x HTTP/1.1")),
    case("line_space_last", head(b"GET /v1/x HTTP/1.1 ")),
    case("line_bare_cr", head(b"GET /v1/x\rHTTP/1.1")),
    case("line_cr_cr_lf", b"GET /v1/x HTTP/1.1\r\r\nHost: localhost\r\n\r\n"),
    case("line_empty_first", b"\r\n" + target(b"/v1/x"), EITHER, [X]),
    case("line_empty_lf_first", b"\n" + target(b"/v1/x"), EITHER, [X]),
]

HOSTS = [
    case(f"host_{name}", head(b"GET /v1/x HTTP/1.1", *fields, host=None))
    for name, fields in [
        ("missing", []),
        ("two_that_agree", [b"Host: localhost", b"Host: localhost"]),
        ("two_that_differ", [b"Host: localhost", b"Host: evil"]),
        ("two_in_odd_case", [b"Host: localhost", b"hOST: evil"]),
        ("empty", [b"Host:"]),
        ("spaces", [b"Host:   "]),
        ("list", [b"Host: localhost, evil"]),
        ("two_words", [b"Host: localhost evil"]),
        ("userinfo", [b"Host: evil@localhost"]),
        ("userinfo_and_port", [b"Host: localhost:80@evil"]),
        ("port_not_a_number", [b"Host: localhost:x"]),
        ("port_too_large", [b"Host: localhost:99999"]),
        ("port_plus", [b"Host: localhost:+80"]),
        ("two_ports", [b"Host: localhost:80:81"]),
        ("slash", [b"Host: localhost/v1"]),
        ("query", [b"Host: localhost?x"]),
        ("fragment", [b"Host: localhost#x"]),
        ("backslash", [b"Host: localhost\\evil"]),
        ("scheme", [b"Host: http://localhost"]),
        ("escape", [b"Host: local%68ost"]),
        ("raw_utf8", ["Host: löcalhost".encode()]),
        ("nul", [b"Host: localhost\0.evil"]),
        ("bracket_open", [b"Host: [::1"]),
        ("bracket_and_more", [b"Host: [::1]evil"]),
        ("space_before_colon", [b"Host : localhost"]),
        ("folded", [b"Host:\r\n localhost"]),
        ("too_long", [b"Host: " + b"a" * 5000]),
    ]
] + [
    case("host_missing_http10", head(b"GET /v1/x HTTP/1.0", host=None)),
    case("host_and_underscored_one", head(b"GET /v1/x HTTP/1.1", b"Ho_st: evil"), {200}, [X], fields=(("host", "localhost"),)),
    case("host_as_forwarded", head(b"GET /v1/x HTTP/1.1", b"X-Forwarded-Host: evil"), {200}, [X], fields=(("host", "localhost"),)),
]


def field(name, line, status=REFUSED, reaches=(), fields=(), **rest):
    return case(f"field_{name}", head(b"GET /v1/x HTTP/1.1", line), status, reaches, fields=tuple(fields), **rest)


REAL = ("x-real-ip", "127.0.0.1")
FIELDS = [
    field("underscore_dropped", b"X_Real_IP: 6.6.6.6", {200}, [X], [REAL, ("x_real_ip", None)]),
    field("address_is_overwritten", b"X-Real-IP: 6.6.6.6\r\nX-Forwarded-For: 6.6.6.6", {200}, [X],
          [REAL, ("x-forwarded-for", "127.0.0.1")]),
    field("space_before_colon", b"X-A : b"),
    field("tab_before_colon", b"X-A\t: b"),
    field("space_in_name", b"X A: b"),
    field("name_empty", b": b"),
    field("no_colon", b"garbage"),
    field("name_control", b"X-\x01A: b"),
    field("name_nul", b"X-\0A: b"),
    field("name_8bit", b"X-\xe9: b"),
    field("name_delimiters", b"X-(A): b"),
    field("value_nul", b"X-A: b\0c"),
    field("value_control", b"X-A: b\x01c"),
    field("value_del", b"X-A: b\x7fc"),
    field("value_bare_cr", b"X-A: b\rc"),
    field("value_bare_cr_makes_a_line", b"X-A: b\rX-Real-IP: 6.6.6.6"),
    field("folded", b"X-A: b\r\n c"),
    field("folded_with_tab", b"X-A: b\r\n\tc"),
    field("bare_lf", b"X-A: b\nX-B: c"),
    field("ends_with_bare_lf", b"X-A: b\n"),
    case("field_folded_first", b"GET /v1/x HTTP/1.1\r\n Host: localhost\r\nHost: localhost\r\n\r\n"),
    case("field_bare_lf_everywhere", b"GET /v1/x HTTP/1.1\nHost: localhost\n\n" + SMUGGLED),
    case("field_bare_lf_at_the_end", b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\n" + SMUGGLED),
    case("field_bare_lf_lf_then_more", b"GET /v1/x HTTP/1.1\r\nHost: localhost\n\nX-A: b\r\n\r\n"),
    case("field_bare_cr_everywhere", (b"GET /v1/x HTTP/1.1\rHost: localhost\r\r", END), {SILENT, 400}),
]

SIZES = [
    case("size_header_below", head(b"GET /v1/x HTTP/1.1", b"X-A: " + b"a" * 32_000), {200}, [X]),
    case("size_header_over", head(b"GET /v1/x HTTP/1.1", b"X-A: " + b"a" * 33_000), {431}),
    case("size_header_far_over", head(b"GET /v1/x HTTP/1.1", b"X-A: " + b"a" * 2_000_000), {431}),
    case("size_header_without_end", b"GET /v1/x HTTP/1.1\r\nX-A: " + b"a" * 200_000, {431}),
    case("size_header_in_many_pieces", (b"GET /v1/x HTTP/1.1\r\n", *([b"X-A: " + b"a" * 993 + b"\r\n"] * 40)), {431}),
    case("size_one_hundred_fields", head(b"GET /v1/x HTTP/1.1", *[b"X-%d: a" % n for n in range(99)]), {200}, [X]),
    case("size_over_one_hundred_fields", head(b"GET /v1/x HTTP/1.1", *[b"X-%d: a" % n for n in range(100)]), {431}),
    case("size_same_field_over_one_hundred_times", head(b"GET /v1/x HTTP/1.1", *[b"X-A: a"] * 100), {431}),
    case("size_three_hundred_fields", head(b"GET /v1/x HTTP/1.1", *[b"X-%d: a" % n for n in range(300)]), {431}),
    case("size_underscored_fields_count", head(b"GET /v1/x HTTP/1.1", *[b"X_%d: a" % n for n in range(150)]), {431}),
    case("size_long_line", target(b"/v1/" + b"a" * 40_000), {414, 431}),
    case("size_long_method", head(b"A" * 40_000 + b" /v1/x HTTP/1.1"), {400, 405, 414, 431}),
    case("size_empty_lines_first", b"\r\n" * 40_000 + target(b"/v1/x"), {400, 431}),
    case("size_many_dots", target(b"/v1" + b"/a/.." * 4000 + b"/x"), EITHER, [X]),
    case("size_length_over_the_limit", length(b"67108865"), {413}, closes=False),
]

METHODS = [
    case("method_trace", head(b"TRACE /v1/x HTTP/1.1"), {405}),
    case("method_connect_authority", head(b"CONNECT localhost:80 HTTP/1.1", host=b"Host: localhost:80"), {400, 405}),
    case("method_connect_path", head(b"CONNECT /v1/x HTTP/1.1"), {400, 405}),
    case("method_connect_with_more", head(b"CONNECT localhost HTTP/1.1") + SMUGGLED, {400, 405}),
    case("method_lower_case", head(b"get /v1/x HTTP/1.1"), {200, 400, 405, 501}, [got(method="get")], closes=False),
    case("method_trace_lower_case", head(b"trace /v1/x HTTP/1.1"), {200, 400, 405, 501}, [got(method="trace")], closes=False),
    case("method_unknown", head(b"BREW /v1/x HTTP/1.1"), {200, 400, 405, 501}, [got(method="BREW")], closes=False),
    case("method_not_a_token", head(b"GE(T /v1/x HTTP/1.1")),
    case("method_nul", head(b"G\0T /v1/x HTTP/1.1")),
    case("method_empty", head(b" /v1/x HTTP/1.1")),
    case("method_8bit", head(b"G\xc9T /v1/x HTTP/1.1")),
]

VERSIONS = [
    case("version_09", b"GET /v1/x\r\n\r\n"),
    case("version_09_spelled", head(b"GET /v1/x HTTP/0.9"), {400, 505}),
    case("version_12", head(b"GET /v1/x HTTP/1.2"), {400, 505}),
    case("version_20", head(b"GET /v1/x HTTP/2.0"), {400, 505}),
    case("version_2", head(b"GET /v1/x HTTP/2"), {400, 505}),
    case("version_lower_case", head(b"GET /v1/x http/1.1"), {400, 505}),
    case("version_ten", head(b"GET /v1/x HTTP/1.10"), {400, 505}),
    case("version_leading_zero", head(b"GET /v1/x HTTP/01.1"), {400, 505}),
    case("version_comma", head(b"GET /v1/x HTTP/1,1"), {400, 505}),
    case("version_of_another_protocol", head(b"GET /v1/x RTSP/1.0"), {400, 505}),
    case("version_missing", head(b"GET /v1/x ")),
    case("preface_almost", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", {SILENT, 400, 405, 505}),
    case("preface_almost_then_request", b"PRI * HTTP/2.0\r\n\r\n" + SMUGGLED, {SILENT, 400, 405, 505}),
    case("garbage_text", b"hello there\r\n\r\n"),
    case("garbage_bytes", bytes(range(128, 256)) * 4, {SILENT, 400}),
    case("garbage_nuls", b"\0" * 4096, {SILENT, 400}),
    case("tls_client_hello", TLS_HELLO, {SILENT, 400}),
    case("response_instead", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    case("proxy_protocol", b"PROXY TCP4 6.6.6.6 127.0.0.1 1 2\r\n" + target(b"/v1/x")),
]


def nominated(name, value, *more, method=b"GET", body=b"", reach=X, fields=(REAL,)):
    data = head(method + b" /v1/x HTTP/1.1", b"Connection: " + value, *more) + body
    return case(f"connection_{name}", data, EITHER, [reach], fields=(*fields, ("connection", None)))


HOPS = [
    nominated("close", b"close"),
    nominated("authorization", b"authorization", b"Authorization: Bearer sk-a"),
    nominated("x_real_ip", b"x-real-ip, x-forwarded-for", fields=(REAL, ("x-forwarded-for", "127.0.0.1"))),
    nominated("x_real_ip_upper_case", b"close, X-REAL-IP"),
    nominated("host", b"host", fields=(("host", "localhost"),)),
    nominated("content_length", b"content-length", SMUGGLED_LENGTH, method=b"POST", body=SMUGGLED, reach=got(method="POST", body=SMUGGLED)),
    nominated("transfer_encoding", b"transfer-encoding", CHUNKED, method=b"POST", body=HELLO_CHUNKED, reach=HELLO),
    nominated("all_of_them", b"close, host, content-length, transfer-encoding, x-request-id", b"Content-Length: 5", method=b"POST",
              body=b"hello", reach=HELLO),
    nominated("garbage", b",,;=\"(, keep-alive"),
    nominated("eight_bit", b"\xff, x-real-ip"),
    nominated("twice", b"x-a", b"Connection: x-b", b"X-A: 1", b"X-B: 2", fields=(REAL, ("x-a", None), ("x-b", None))),
    nominated("keep_alive", b"keep-alive", b"Keep-Alive: timeout=9", b"Proxy-Connection: keep-alive",
              fields=(("keep-alive", None), ("proxy-connection", None))),
    nominated("te", b"te", b"TE: gzip", fields=(("te", None),)),
    nominated("h2c", b"Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__",
              fields=(("upgrade", None), ("http2-settings", None))),
    case("upgrade_without_option", head(b"GET /v1/x HTTP/1.1", b"Upgrade: websocket"), {200}, [X], fields=(("upgrade", None),)),
    case("upgrade_with_another_option", head(b"GET /v1/x HTTP/1.1", b"Upgrade: websocket", b"Connection: keep-alive"), {200}, [X],
         fields=(("upgrade", None),)),
    case("expect_continue", (post(b"Expect: 100-continue", b"Content-Length: 5"), 0.1, b"hello"), {200}, [HELLO]),
    case("expect_continue_with_body_at_once", post(b"Expect: 100-continue", b"Content-Length: 5", body=b"hello"), {200}, [HELLO]),
    case("expect_continue_without_body", head(b"GET /v1/x HTTP/1.1", b"Expect: 100-continue"), EITHER, [X]),
    case("expect_continue_http10", post(b"Expect: 100-continue", b"Content-Length: 5", body=b"hello", version=b"HTTP/1.0"), EITHER,
         [HELLO]),
    case("expect_nonsense", post(b"Expect: 200-ok", b"Content-Length: 5", body=b"hello"), {200, 400, 417}, [HELLO]),
    case("expect_continue_refused", head(b"POST /v1/a%00 HTTP/1.1", b"Expect: 100-continue", b"Content-Length: 5")),
    case("expect_continue_refused_then_smuggled", head(b"TRACE /v1/x HTTP/1.1", b"Expect: 100-continue", b"Content-Length: 5") + SMUGGLED,
         {405}),
]

AFTER = [got("/v1/second")]
PIPELINES = [
    case("pipeline_after_refused_method", head(b"TRACE /v1/x HTTP/1.1") + SMUGGLED, {405}),
    case("pipeline_after_refused_target", target(b"/v1/a%00") + SMUGGLED),
    case("pipeline_after_refused_host", head(b"GET /v1/x HTTP/1.1", b"Host: evil") + SMUGGLED),
    case("pipeline_after_refused_size", head(b"GET /v1/x HTTP/1.1", b"X-A: " + b"a" * 33_000) + SMUGGLED, {431}),
    case("pipeline_after_refused_later", (target(b"/v1/a%00"), 0.1, SMUGGLED)),
    case("pipeline_in_the_body_of_a_refused_one", head(b"POST /v1/a%00 HTTP/1.1", SMUGGLED_LENGTH) + SMUGGLED),
    case("pipeline_in_the_body_of_an_unknown_path", head(b"POST /else HTTP/1.1", SMUGGLED_LENGTH) + SMUGGLED, {404}, closes=False),
    case("pipeline_in_the_chunks_of_an_unknown_path", head(b"POST /else HTTP/1.1", CHUNKED) + b"30\r\n" + SMUGGLED + b"0\r\n\r\n", {404},
         closes=False),
    case("pipeline_after_body", length(b"5") + SECOND, {200}, [HELLO, *AFTER]),
    case("pipeline_after_chunks", chunks(HELLO_CHUNKED) + SECOND, {200}, [HELLO, *AFTER]),
    case("pipeline_after_get", target(b"/v1/x") + SECOND, {200}, [X, *AFTER]),
    case("pipeline_after_head", head(b"HEAD /v1/x HTTP/1.1") + SECOND, {200}, [got(method="HEAD"), *AFTER]),
    case("pipeline_after_close", head(b"GET /v1/x HTTP/1.1", b"Connection: close") + SMUGGLED, {200}, [X]),
    case("pipeline_after_close_on_a_second_line", head(b"GET /v1/x HTTP/1.1", b"Connection: keep-alive", b"Connection: Close") + SMUGGLED,
         {200}, [X]),
    case("pipeline_after_close_among_others", head(b"GET /v1/x HTTP/1.1", b"Connection: keep-alive, close") + SMUGGLED, {200}, [X]),
    case("pipeline_after_http10", head(b"GET /v1/x HTTP/1.0") + SMUGGLED, {200}, [X]),
    case("pipeline_while_the_first_is_answered", (target(b"/v1/slow"), 0.15, SECOND), {200}, [got("/v1/slow"), *AFTER]),
    case("pipeline_part_while_the_first_is_answered", (target(b"/v1/slow"), 0.15, SECOND[:20], 0.5, SECOND[20:]), {200},
         [got("/v1/slow"), *AFTER]),
    case("pipeline_refused_second", target(b"/v1/x") + target(b"/v1/a%00") + SMUGGLED, {200}, [X]),
    case("pipeline_second_with_two_framings", target(b"/v1/x") + post(b"Content-Length: 4", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED), {200},
         [X]),
    case("pipeline_of_a_hundred", target(b"/v1/x") * 100, {200}, [X] * 100),
    case("pipeline_later", (length(b"5"), 0.2, SECOND), {200}, [HELLO, *AFTER]),
    case("pipeline_later_refused", (target(b"/v1/x"), 0.2, b"GET /v1/x  HTTP/1.1\r\nHost: localhost\r\n\r\n" + SMUGGLED), {200}, [X]),
]

SLOW = [
    case("slow_header", (b"GET /v1/x HT", 0.5, b"TP/1.1\r\n"), {408}, within=1.4),
    case("slow_header_after_empty_lines", (b"\r\n", 0.5, b"\r\n"), {SILENT, 408}, within=1.4),
    case("slow_header_like_a_preface", (b"PRI", 0.9, b"NT /v1/x HTTP/1.1\r\n"), {SILENT, 408}, within=0.6),
    case("slow_preface", (b"PRI * HT", 0.5, b"TP/2.0\r\n"), {SILENT, 408}, within=1.4),
    case("slow_silence", b"", {SILENT}, within=2.8),
    case("slow_body", length(b"5", b"hel"), {408}, cut="/v1/x", within=1.6),
    case("slow_body_never_begun", length(b"5", b""), {408}, cut="/v1/x", within=1.6),
    case("slow_chunks", chunks(b"5\r\nhel"), {408}, cut="/v1/x", within=1.6),
    case("slow_chunks_without_end", chunks(b"5\r\nhello\r\n"), {408}, cut="/v1/x", within=1.6),
    case("slow_chunks_without_last_line", chunks(b"5\r\nhello\r\n0\r\n"), {408}, cut="/v1/x", within=1.6),
    case("slow_body_of_a_refused_one", head(b"POST /v1/a%00 HTTP/1.1", b"Content-Length: 5"), {400}, within=2.8),
]

CASES = FRAMING + CHUNKS + TARGETS + HOSTS + FIELDS + SIZES + METHODS + VERSIONS + HOPS + PIPELINES + SLOW


@pytest.fixture(scope="module")
def upstream():
    with Strict() as strict:
        yield strict


@pytest.fixture(scope="module")
def keylatch(upstream, tmp_path_factory):
    with Keylatch(tmp_path_factory.mktemp("hostile_h1"), upstream.port, limits=LIMITS) as running:
        yield running


def send(connection, pieces):
    """Sends the pieces; the proxy may close the connection before the last one."""
    try:
        for piece in pieces:
            if isinstance(piece, float):
                time.sleep(piece)
            elif piece == END:
                connection.shutdown(socket.SHUT_WR)
            else:
                connection.sendall(piece)
    except (BrokenPipeError, ConnectionResetError):
        pass


def read_answer(file, method):
    """The status of the next final answer, or SILENT if there is none."""
    try:
        while True:
            answer = raw.read_head(file)
            if answer is None:
                return SILENT
            status, fields = answer
            if status >= 200:
                break
        whole = method == "HEAD" or raw.read_body(file, fields)[1]
        assert whole, f"truncated answer: {status}"
        return status
    except (BrokenPipeError, ConnectionResetError):
        return SILENT


def exchange(port, attack):
    """Sends the attack; returns the statuses of the answers, and the time of the first one after
    the last byte."""
    method = attack.reaches[0][0] if attack.reaches else attack.pieces[0].split(b" ")[0].decode("latin-1")
    with raw.connect(port, timeout=attack.within) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        send(connection, attack.pieces)
        file = connection.makefile("rb")
        try:
            statuses = [read_answer(file, method)]
            if statuses[0] in (200, 404) or not attack.closes:
                # Closing the write side during a request cancels it, and the upstream may see this
                # at any later time.
                while statuses[-1] == 200 and len(statuses) < len(attack.reaches):
                    statuses.append(read_answer(file, "GET"))
                # A regular end of a keep-alive connection, after all requests are answered.
                send(connection, (END,))
            # A refusal closes the connection, even if the client does not.
            while statuses[-1] != SILENT and len(statuses) < 200:
                statuses.append(read_answer(file, "GET"))
        except TimeoutError:
            raise AssertionError(f"neither answered nor closed within {attack.within} s") from None
    return statuses[:-1] if statuses[-1] == SILENT and len(statuses) > 1 else statuses


def began_ms(seen):
    """The time in a request id given by the proxy. A request with a foreign id counts as new."""
    try:
        return uuid.UUID(seen.all("x-request-id")[0]).int >> 80
    except (IndexError, ValueError):
        return time.time() * 1000


def settle(upstream, keylatch, before, since_ms):
    """Asserts that an ordinary request is answered after the attack; returns the requests of the
    attack at the upstream. Requests of an earlier, cancelled case may arrive only now, and are left
    out."""
    assert keylatch.process.poll() is None, "the process has ended"
    answer = raw.request(keylatch.port, "/v1/probe", method="POST", body=b"probe")
    assert (answer.status, answer.body) == (200, b"ok"), "an ordinary request after the attack"
    return [seen for seen in upstream.requests[before:] if seen.target != "/v1/probe" and began_ms(seen) >= since_ms]


@pytest.mark.parametrize("attack", CASES, ids=[attack.name for attack in CASES])
def test_hostile(keylatch, upstream, attack):
    requests, errors, since_ms = len(upstream.requests), len(upstream.errors), int(time.time() * 1000)
    statuses = exchange(keylatch.port, attack)
    seen = settle(upstream, keylatch, requests, since_ms)
    assert upstream.errors[errors:] == [], "the upstream saw something malformed"
    assert statuses[0] in attack.status, f"answered {statuses}; the upstream saw {seen}"
    whole = [request.brief() for request in seen if request.whole]
    part = [request.target for request in seen if not request.whole]
    assert all(path == attack.cut for path in part) and len(part) <= 1, f"unfinished at the upstream: {seen}"
    assert whole == list(attack.reaches[: len(whole)]), f"the upstream saw {seen}"
    assert bool(whole) == (statuses[0] == 200), f"answered {statuses}; the upstream saw {seen}"
    assert len(statuses) <= max(1, len(attack.reaches)) or set(statuses[1:]) <= {400, 404, 405}, f"answered {statuses}"
    for name, value in attack.fields if whole else ():
        assert seen[0].all(name) == ([] if value is None else [value]), f"{name}: {seen[0]}"


def test_nothing_panicked_and_the_upstream_saw_no_error(keylatch, upstream):
    assert upstream.errors == []
    assert "panicked" not in keylatch.stderr.read_text() + keylatch.stdout.read_text()
    assert len({attack.name for attack in CASES}) == len(CASES) >= 60


def test_header_timeout_of_a_second_request(keylatch, upstream):
    for first in (target(b"/v1/x"), length(b"5"), target(b"/elsewhere")):
        with raw.connect(keylatch.port, timeout=6) as connection:
            connection.sendall(first)
            file = connection.makefile("rb")
            assert read_answer(file, "GET") in (200, 404)
            connection.sendall(b"GET /v1/x HTTP/1.1\r\nHo")
            begun = time.monotonic()
            assert read_answer(file, "GET") == 408
            assert 0.7 < time.monotonic() - begun < 1.9, "header_timeout applies, not idle_timeout"
            assert file.read() == b"", "the connection is closed"


def test_trickling_connections_are_closed_and_block_no_client(upstream, tmp_path):
    """300 clients send one byte of a header every 0.2 s; header_timeout is 2 s."""
    count, timeout, slack = 300, 2.0, 1.5
    starts = [b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"POST /v1/x HTTP/1.1\r\nHost: ", b"\r\n\r\n\r\n\r\n",
              b"PRI * HTTP/2.0\r\n\r\n"]
    starts.append(b"PRINT /v1/x HTTP/1.1\r\nX-A: ")

    async def trickle(port, data):
        """The time until the proxy closed the connection, and its answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        begun = time.monotonic()
        answer = asyncio.ensure_future(reader.read())
        try:
            for byte in (data + b"a" * 100)[:100]:
                writer.write(bytes([byte]))
                done, _ = await asyncio.wait([answer], timeout=0.2)
                if done:
                    break
            try:
                said = await asyncio.wait_for(answer, 1)
            except ConnectionError:
                said = b""
            except TimeoutError:
                said = None
        finally:
            answer.cancel()
            writer.close()
        return time.monotonic() - begun, said

    async def ordinary(port, over):
        """The time of the slowest ordinary request, and the number of requests."""
        slowest, answered = 0.0, 0
        while not over.is_set() and answered < 5000:
            begun = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head(b"GET /v1/x HTTP/1.1", b"Connection: close"))
            said = await asyncio.wait_for(reader.read(), 5)
            assert said.startswith(b"HTTP/1.1 200 "), said
            writer.close()
            slowest, answered = max(slowest, time.monotonic() - begun), answered + 1
            await asyncio.sleep(0.02)
        return slowest, answered

    async def all_of_it(port):
        over = asyncio.Event()
        beside = asyncio.ensure_future(ordinary(port, over))
        trickles = await asyncio.gather(*(trickle(port, starts[n % len(starts)]) for n in range(count)))
        over.set()
        return trickles, await beside

    with Keylatch(tmp_path, upstream.port, limits="{header_timeout: 2s}") as slow:
        requests = len(upstream.requests)
        trickles, (slowest, answered) = asyncio.run(all_of_it(slow.port))
        wait_for(lambda: slow.metrics()["keylatch_connections"] <= 1, "no connection is left", 2)
    assert all(said is not None for _, said in trickles), "some were never closed"
    late = {starts[n % len(starts)]: round(took, 2) for n, (took, _) in enumerate(trickles) if took > timeout + slack}
    assert not late, f"closed later than {timeout + slack} s: {late}"
    assert all(b" 408 " in trickles[n][1] for n in range(0, count, len(starts)))
    # Far more than an ordinary request takes, and half of header_timeout.
    assert answered > 50 and slowest < 1, f"{answered} ordinary requests, the slowest took {slowest:.2f} s"
    assert {seen.target for seen in upstream.requests[requests:]} == {"/v1/x"} and len(upstream.requests) - requests == answered
