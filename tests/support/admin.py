"""A client of the admin API."""

import httpx

PASSWORD = "correct-horse-battery"
ENV = {"KEYLATCH_ADMIN_PASSWORD": PASSWORD}


class Admin:
    """One operator's session with the admin API of one replica."""

    def __init__(self, replica, token=None, source=None):
        self.replica, self.token = replica, token
        transport = httpx.HTTPTransport(local_address=source) if source else None
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{replica.admin}/admin/api", timeout=30, transport=transport)

    def call(self, method, path, json=None, status=None, **more):
        headers = {**({"authorization": f"Bearer {self.token}"} if self.token else {}), **more.pop("headers", {})}
        if path == "/events":
            # The event stream does not end, so its body is not read here.
            with self.client.stream(method, path, headers=headers) as answer:
                return answer
        answer = self.client.request(method, path, json=json, headers=headers, **more)
        assert status is None or answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer

    def get(self, path, status=200, **more):
        return self.call("GET", path, status=status, **more)

    def post(self, path, json=None, status=200, **more):
        return self.call("POST", path, json, status, **more)

    def put(self, path, json=None, status=200, **more):
        return self.call("PUT", path, json, status, **more)

    def sign_in(self, username="admin", password=PASSWORD, status=200):
        answer = self.post("/login", {"username": username, "password": password}, status)
        if status == 200:
            self.token = answer.json()["access_token"]
        return answer

    def create_account(self, name, role, password="another-horse-battery"):
        """Creates an account and signs in with it."""
        self.post("/accounts", {"name": name, "role": role, "password": "first-horse-battery"}, 201)
        other = Admin(self.replica)
        other.sign_in(name, "first-horse-battery")
        other.put("/account/password", {"current": "first-horse-battery", "password": password}, 204)
        return other


def signed_in(replica, **more):
    """A session of the first account."""
    admin = Admin(replica, **more)
    # The process creates the account in the background of its start.
    for _ in range(200):
        if admin.sign_in(status=None).status_code == 200:
            admin.sign_in()
            return admin
    raise AssertionError("the first account cannot sign in")
