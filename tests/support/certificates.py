"""A CA for tests of stores over TLS."""

import pathlib
import subprocess


class Certificates:
    """A CA, and a certificate for 127.0.0.1 signed by it."""

    def __init__(self, folder, name="IP:127.0.0.1"):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(exist_ok=True)
        self.ca, self.cert, self.key = (self.folder / each for each in ("ca.pem", "cert.pem", "key.pem"))
        run = lambda *words: subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)  # noqa: E731
        ca_key = self.folder / "ca.key"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        run("req", "-x509", *curve, "-keyout", ca_key, "-out", self.ca, "-days", 30, "-subj", "/CN=Test CA")
        request, extensions = self.folder / "request.pem", self.folder / "extensions"
        run("req", *curve, "-keyout", self.key, "-out", request, "-subj", "/CN=test")
        extensions.write_text(f"subjectAltName={name}\n")
        run("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", ca_key, "-out", self.cert, "-days", 30, "-extfile", extensions)
        self.key.chmod(0o644)
