"""Nothing changes on the way that need not: targets, fields and answers arrive as they were sent, or are refused with a reason."""

import json
from urllib.parse import quote

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from support import raw
from support.keylatch import DEFAULT, Keylatch, wait_for
from support.upstreams import Scripted, echo, plain


@pytest.fixture(scope="module")
def upstream():
    with Scripted(echo) as scripted:
        yield scripted


@pytest.fixture(scope="module")
def shared(upstream, tmp_path_factory):
    with Keylatch(tmp_path_factory.mktemp("unchanged"), upstream.port) as running:
        yield running


def seen(keylatch, target, *fields):
    """The answer's status, and the target that the upstream got."""
    answer = raw.request(keylatch.port, target, headers=fields)
    return answer.status, json.loads(answer.body).get("target")


UNCHANGED = [
    "/v1/model/anthropic.claude-v1%3A0/invoke",
    "/v1/model/anthropic.claude-v1%3a0/invoke",
    "/v1/a%2Bb+c",
    "/v1/%7Euser/%41",
    "/v1/a|b{c}^d",
    "/v1/%E4%BD%A0%e5%a5%bd",
    "/v1/a;b=%3B/c",
    "/v1/x?q=%7b%22a%22%3a1%7D&t=a+b%20c",
    "/v1/x?q={a|b}^`'[0]&r=//../%2e%2e",
    "/v1/x?",
]
CHANGED = [
    # What is sent is what was judged: dot segments are removed and repeated slashes merged, the rest keeps its spelling.
    ("/v1/./x%3A0/../y%3A0", "/v1/y%3A0"),
    ("/v1/%2e%2E/v1//y%3A0//", "/v1/y%3A0/"),
]
CHANGED = [
    # What is sent is what was judged: dot segments are removed and repeated slashes merged, the rest keeps its spelling.
    ("/v1/./x%3A0/../y%3A0", "/v1/y%3A0"),
    ("/v1/%2e%2E/v1//y%3A0//", "/v1/y%3A0/"),
    # Bytes that no URI holds are escaped, which decodes to the same.
    ('/v1/x?q="a"&r=<b>', "/v1/x?q=%22a%22&r=%3Cb%3E"),
    ('/v1/"x"`', "/v1/%22x%22%60"),
]


@pytest.mark.parametrize("target", UNCHANGED)
def test_a_target_arrives_as_it_was_sent(shared, target):
    assert seen(shared, target) == (200, target)


@pytest.mark.parametrize("target, arrives", CHANGED)
def test_what_is_changed_in_a_target(shared, target, arrives):
    assert seen(shared, target) == (200, arrives)


CREDENTIALS = Credentials("AKIDEXAMPLE", "a secret that both know")


def signed(method, target, host, body, headers=(), date=None):
    """A request signed by botocore, at this date or now."""
    request = AWSRequest(method, f"http://{host}{target}", data=body, headers=dict(headers))
    signer = SigV4Auth(CREDENTIALS, "bedrock", "us-east-1")
    if date is None:
        signer.add_auth(request)
        return dict(request.headers)
    request.context["timestamp"] = request.headers["x-amz-date"] = date
    return signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)


def bedrock(request, send):
    """Answers as Bedrock does: 403 if the signature does not fit what has arrived."""
    fields = dict(request["headers"])
    names = fields["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    headers = {name: fields[name] for name in names if name not in ("host", "x-amz-date")}
    signature = signed(request["method"], request["target"], fields["host"], request["body"], headers, fields["x-amz-date"])
    fits = fields["authorization"].endswith(f"Signature={signature}")
    send(plain("200 OK" if fits else "403 Forbidden", body=request["target"].encode()))
    return True


SETTLED = "!$&'()*+,=:@-._~"
MODELS = [
    "anthropic.claude-3-5-sonnet-20241022-v2:0",
    "us.anthropic.claude-3-haiku-20240307-v1:0",
    "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.meta.llama3-1-8b-instruct-v1:0",
    "a b+c~d(e)",
]


@pytest.fixture(scope="module")
def signing(tmp_path_factory):
    config = DEFAULT.replace('["/v1/*"]}}', '["/model/*"]}}\n    allow_encoded_slash: true')
    with Scripted(bedrock) as upstream, Keylatch(tmp_path_factory.mktemp("signing"), upstream.port, config=config) as running:
        yield running


@pytest.mark.parametrize("model", MODELS)
def test_a_signature_over_the_path_stays_valid(signing, model):
    """botocore escapes the model's name and signs the escaped path (SigV4); what arrives must be what was signed."""
    target, body = f"/model/{quote(model, safe='-._~')}/invoke?x=a%2Fb%3A", b'{"prompt":"hi"}'
    answer = raw.request(signing.port, target, "POST", signed("POST", target, "localhost", body).items(), body)
    assert (answer.status, answer.body.decode()) == (200, target)
    # Rules and logs see the one normalised form.
    judged = f"/model/{quote(model, safe=SETTLED)}/invoke"
    assert wait_for(lambda: [line for line in signing.access_log() if line["path"] == judged], "a line")[0]["status"] == 200


def test_a_signature_is_really_looked_at(signing):
    answer = raw.request(signing.port, "/model/b", "POST", signed("POST", "/model/a", "localhost", b"x").items(), b"x")
    assert answer.status == 403
