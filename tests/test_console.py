"""The console in a real browser: Debian's Chromium with its WebDriver."""

import json
import pathlib
import re
import shutil
import time

import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.common.exceptions import ElementClickInterceptedException, NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from support import raw
from support.admin import ENV, PASSWORD, signed_in
from support.keylatch import ROOT, free_port, wait_for
from support.provider import CLIENT, SECRET, Provider
from support.stores import FREE, send_request
from support.upstreams import Scripted, plain

KEY = "sk-console-01-abcdwxyz"
CONSOLE = ROOT / "src" / "console"
STORE = "{sqlite: {path: t.db, flush_every: 50ms}}"
PAGES = ["dashboard", "usage", "bindings", "intercepts", "streams", "limits", "settings", "configuration", "audit", "accounts", "account"]


class Browser:
    """A browser with the console of one replica."""

    def __init__(self, driver, replica):
        self.driver, self.base = driver, f"http://127.0.0.1:{replica.admin}/admin/ui/"

    def open(self, page=""):
        self.driver.get("about:blank")
        self.driver.get(self.base + (f"#/{page}" if page else ""))

    def text(self):
        try:
            return self.driver.find_element(By.TAG_NAME, "body").text
        except (StaleElementReferenceException, NoSuchElementException):
            # The page is being replaced.
            return ""

    def sees(self, text, seconds=10):
        wait_for(lambda: text in self.text(), f"{text!r} in {self.text()[:2000]!r}", seconds)

    def field(self, label):
        xpath = f"//*[self::input or self::select or self::textarea][@id=//label[normalize-space()='{label}']/@for]"
        return wait_for(lambda: next(iter(self.driver.find_elements(By.XPATH, xpath)), None), f"the field {label}")

    def holds(self, label, text):
        """Waits until the field contains this text."""
        wait_for(fresh(lambda: self.field(label).get_property("value") == text), f"{label} holds {text!r}")

    def fill(self, label, text):
        def typed():
            field = self.field(label)
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(text)
            return True

        wait_for(fresh(typed), f"{label} is filled")

    def fill_in(self, heading, label, text):
        """Like `fill`, in the form with this heading."""
        xpath = f"//form[.//h2[normalize-space()='{heading}']]//label[normalize-space()='{label}']/following-sibling::*[self::input or self::textarea]"

        def typed():
            field = self.driver.find_element(By.XPATH, xpath)
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(text)
            return True

        wait_for(fresh(typed), f"{label} is filled")

    def choose(self, label, value):
        def chosen():
            options = self.field(label).find_elements(By.TAG_NAME, "option")
            return next(option for option in options if option.get_property("value") == value).click() or True

        wait_for(fresh(chosen), f"{label} is {value}")

    def press(self, name, within=""):
        """Clicks the first button or link with this name."""
        xpath = f"{within}//*[self::button or self::a or self::label][normalize-space()='{name}' or @aria-label='{name}']"
        found = lambda: next((one for one in self.driver.find_elements(By.XPATH, xpath) if one.is_displayed() and one.is_enabled()), None)  # noqa: E731

        def pressed():
            button = found()
            if not button:
                return False
            # Scrolls the element out from below the sticky top bar.
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
            button.click()
            return True

        wait_for(fresh(pressed), f"the button {name}")

    def sign_in(self, name="admin", password=PASSWORD):
        self.fill("Name", name)
        self.fill("Password", password)
        self.press("Sign in")

    def complaints(self):
        """The browser's own console errors, without failed API requests."""
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        return [message for message in said if "the server responded with a status of" not in message]


def fresh(act):
    """Retries an action after a re-render of the page has replaced its elements."""

    def again():
        try:
            return act()
        except (StaleElementReferenceException, ElementClickInterceptedException, NoSuchElementException):
            return False

    return again


def driver_for(language="en-US"):
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1360,1000", f"--lang={language}", "--disable-background-networking"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


@pytest.fixture(scope="module")
def driver():
    with driver_for() as driver:
        yield driver


@pytest.fixture
def replica(start, echo_upstream):
    return start(echo_upstream, route_filters=FREE, storage=STORE, env=ENV)


@pytest.fixture
def browser(driver, replica):
    browser = Browser(driver, replica)
    browser.open()
    driver.execute_script("sessionStorage.clear(); localStorage.clear()")
    browser.open()
    driver.get_log("browser")
    yield browser
    complaints = browser.complaints()
    driver.get("about:blank")
    assert complaints == []


def test_the_first_sign_in(start, echo_upstream, driver):
    replica = start(echo_upstream, storage=STORE)
    said = "must be changed at the first sign-in:\n"
    wait_for(lambda: said in replica.stderr.read_text(), "the password is printed")
    browser = Browser(driver, replica)
    browser.open()
    browser.sign_in(password="wrong-horse-battery")
    browser.sees("name or password is wrong")
    browser.holds("Name", "admin")
    first = replica.stderr.read_text().split(said)[1].splitlines()[0]
    browser.fill("Password", first)
    browser.press("Sign in")
    browser.sees("Choose a password")
    browser.fill("Current password", first)
    browser.fill("New password", "my-admin-password")
    browser.fill("Confirm new password", "my-admin-password")
    browser.press("Change password")
    browser.sees("must not contain the account's name")
    browser.fill("New password", PASSWORD)
    browser.fill("Confirm new password", PASSWORD + "x")
    browser.sees("The passwords do not match.")
    browser.fill("Confirm new password", PASSWORD)
    browser.press("Change password")
    browser.sees("Requests per second")
    browser.press("Sign out")
    browser.sees("Sign in to Keylatch")
    driver.get("about:blank")


def test_find_a_refused_key_allow_its_address_then_ban_it(browser, replica, driver):
    assert send_request(replica, KEY).status == 200 and send_request(replica, KEY, "127.0.0.2").status == 403
    browser.sign_in()
    browser.press("Bindings")
    browser.fill("Search", KEY + Keys.ENTER)
    browser.sees("Refused addresses")
    assert KEY not in driver.current_url and "127.0.0.2" in browser.text()
    browser.press("Allow 127.0.0.2")
    browser.sees("127.0.0.2 is now allowed.")
    wait_for(lambda: send_request(replica, KEY, "127.0.0.2").status == 200, "the added address is admitted", 3)
    browser.sees("allowed")
    browser.press("Ban")
    browser.sees("Unban the key to undo this.")
    browser.press("Ban", "//dialog")
    browser.sees("Key banned.")
    wait_for(lambda: send_request(replica, KEY).status == 403, "the banned key is refused", 3)
    # Another operator saves first: the form keeps its input, and the other change is not
    # overwritten.
    other = signed_in(replica)
    key_id = other.post("/bindings/look-up", {"key": KEY}).json()["key_id"]
    browser.fill("Note", "typed before")
    other.post("/bindings/unban", {"key_id": key_id})
    browser.press("Save")
    browser.sees("Changed meanwhile")
    browser.holds("Note", "typed before")
    browser.press("Load the current version")
    browser.holds("Note", "")
    browser.fill("Note", "Ann's laptop")
    browser.fill("Labels", "team-a")
    browser.press("Save")
    browser.sees("Binding saved.")
    # Browser history.
    browser.press("← All bindings")
    browser.sees("Order")
    browser.fill("Label", "team-a" + Keys.ENTER)
    wait_for(lambda: "label=team-a" in driver.current_url, "the filter is in the address")
    browser.sees("1 of 1 shown")
    driver.get(driver.current_url)
    browser.sees("1 of 1 shown")
    # An irreversible action needs a confirmation.
    browser.open(f"bindings/{key_id}")
    browser.press("Unbind")
    browser.sees("This cannot be undone.")
    browser.press("Unbind", "//dialog")
    browser.sees("This key is no longer bound.")
    browser.sees("unbound by admin")
    driver.back()
    assert send_request(replica, KEY, "127.0.0.9").status == 200


def test_live_intercepts_and_bulk_changes_of_bindings(browser, replica, driver):
    browser.sign_in()
    browser.press("Intercepts")
    browser.sees("No matching intercepts.")
    for n in range(6):
        assert send_request(replica, f"sk-many-{n:04}-abcdefgh", f"127.0.3.{n}").status == 200
    assert send_request(replica, "sk-many-0000-abcdefgh", "127.0.4.1").status == 403
    browser.press("Show 1 new")
    browser.sees("127.0.4.1")
    browser.press("Allow 127.0.4.1")
    browser.sees("127.0.4.1 is now allowed")
    browser.choose("Group by", "key")
    wait_for(lambda: "by=key" in driver.current_url, "the filter is in the URL")
    driver.back()
    browser.sees("bound to")
    browser.open("bindings?network=127.0.3.0%2F24")
    browser.press("Change all matching bindings…")
    browser.choose("Action", "label")
    browser.driver.find_element(By.XPATH, "//dialog//input").send_keys("floor-3")
    browser.press("Preview changes")
    browser.sees("6 bindings match.")
    browser.press("Change 6 bindings")
    browser.sees("6 of 6 bindings changed.")
    browser.open("bindings?label=floor-3")
    browser.sees("6 of 6 shown")


def test_a_pasted_key_is_found_from_every_field_and_is_in_no_url(browser, replica, driver):
    assert send_request(replica, KEY).status == 200 and send_request(replica, KEY, "127.0.0.2").status == 403
    other = signed_in(replica)
    key_id = other.post("/bindings/look-up", {"key": KEY}).json()["key_id"]
    wait_for(lambda: other.get("/logs").json()["items"], "the intercept is written")
    browser.sign_in()
    browser.sees("Requests per second")
    seen = "window.performance.getEntriesByType('resource').map(entry => entry.name).join(' ') + location.href"

    def find(page, field, text, there):
        browser.open(page)
        browser.sees("Live")
        browser.fill(field, text)
        browser.holds(field, text)
        browser.fill(field, text + Keys.ENTER)
        try:
            wait_for(lambda: there in driver.current_url, f"{there} for {page} {field} {text}")
        except AssertionError as error:
            shown = [driver.current_url, browser.field(field).get_property("value"), driver.execute_script(f"return {seen}")[-500:]]
            raise AssertionError(f"{error}: {shown}") from error
        assert KEY not in driver.execute_script(f"return {seen}")
        wait_for(fresh(lambda: KEY not in (browser.field(field).get_property("value") or "") if "bindings/" not in driver.current_url else True), "the key is gone")

    for text in (KEY, key_id, key_id[:7], f"key={key_id[:12]}"):
        find("intercepts", "Key", text, f"key_id={key_id[:6]}")
        browser.sees("127.0.0.2")
    find("intercepts", "Key", "127.0.0.2", "client=127.0.0.2")
    find("intercepts", "Route", KEY, f"key_id={key_id}")
    find("limits", "Limit, key, key id, address or claim", KEY, f"search={key_id}")
    for text in (KEY, key_id[:9]):
        find("audit", "Target", text, f"target={key_id}")
    find("audit", "Actor", KEY, f"target={key_id}")
    find("bindings", "Label", KEY, f"key_id={key_id}")
    find("bindings", "Search", KEY, f"bindings/{key_id}")
    find("bindings", "Search", key_id[:7], f"key_id={key_id[:7]}")
    browser.sees("1 of 1 shown")
    # The result for a key without a binding links to its intercepts.
    browser.open("bindings")
    browser.fill("Search", "sk-unknown-01-abcdefgh" + Keys.ENTER)
    browser.sees("This key is not bound.")
    browser.press("Intercepts of this key")
    wait_for(lambda: "intercepts?key_id=" in driver.current_url, "the link leads there")
    # A label that looks like a key is refused.
    browser.open(f"bindings/{key_id}")
    browser.fill("Labels", KEY)
    browser.press("Save")
    browser.sees("a label must not look like an API key")


def test_more_tabs_than_the_browser_allows_connections(browser, replica, driver):
    """Browsers open at most six HTTP/1.1 connections to a server, and each tab would use one for
    events."""
    assert send_request(replica, KEY).status == 200
    browser.sign_in()
    browser.sees("Requests per second")
    first = driver.current_window_handle
    session = driver.execute_script("return sessionStorage.getItem('keylatch.session')")
    others = []
    try:
        for _ in range(8):
            driver.switch_to.new_window("tab")
            others.append(driver.current_window_handle)
            browser.open()
            driver.execute_script("sessionStorage.setItem('keylatch.session', arguments[0])", session)
            browser.open("bindings")
            browser.sees("Live")
        browser.fill("Search", KEY + Keys.ENTER)
        browser.sees("History")
        driver.switch_to.window(first)
        browser.press("Intercepts")
        browser.sees("Live")
        assert send_request(replica, KEY, "127.0.0.2").status == 403
        browser.sees("Show 1 new")
    finally:
        for tab in others:
            driver.switch_to.window(tab)
            driver.close()
        driver.switch_to.window(first)


def test_shadow_intercepts_are_labelled(start, echo_upstream, driver):
    shadowed = start(echo_upstream, route_filters="      - key_binding: {}\n        shadow: true", storage=STORE, env=ENV)
    assert [send_request(shadowed, KEY, source).status for source in ("127.0.0.1", "127.0.0.2")] == [200, 200]
    browser = Browser(driver, shadowed)
    browser.open()
    browser.sign_in()
    browser.sees("Requests per second")
    wait_for(lambda: signed_in(shadowed).get("/logs").json()["items"], "the intercept is written")
    browser.press("Intercepts")
    browser.sees("shadow bound to")
    browser.choose("Shadow mode", "false")
    browser.sees("No matching intercepts.")
    driver.get("about:blank")


COUNTED = """
prices: {models: [{model: "gpt-*", input: 2.5, output: 10}]}
usage: {flush_every: 1s}
"""


def counted_answer(request, send):
    """A chat completion with usage."""
    body = {"model": json.loads(request["body"])["model"], "choices": [{"message": {"content": "Hello."}}], "usage": {"prompt_tokens": 1000, "completion_tokens": 200, "prompt_tokens_details": {"cached_tokens": 250}}}
    send(plain(body=json.dumps(body).encode(), headers=["Content-Type: application/json"]))
    return True


@pytest.fixture
def counting(start):
    """A replica that has counted three requests of one key and one of another."""
    with Scripted(counted_answer) as upstream:
        replica = start(upstream, route_filters=FREE + "\n      - usage: {}", more=COUNTED, storage=STORE, env=ENV)
        for key, model in ((KEY, "gpt-4o"), (KEY, "gpt-4o"), (KEY, "llama3"), ("sk-console-02-abcdmnop", "gpt-4o-mini")):
            body = json.dumps({"model": model, "messages": []}).encode()
            assert raw.request(replica.port, "/v1/chat/completions", "POST", [raw.key(key), ("Content-Type", "application/json")], body).status == 200
        admin = signed_in(replica)
        wait_for(lambda: admin.get("/usage").json()["items"][:1] and admin.get("/usage").json()["items"][0]["requests"] == 4, "the usage is written")
        yield replica


def test_usage_by_key_and_model(counting, driver):
    browser = Browser(driver, counting)
    browser.open()
    browser.sign_in()
    browser.press("Usage")
    browser.sees("Top models")
    browser.sees("1 requests without a price")
    text = browser.text()
    assert "25% cached" in text and "gpt-4o-mini" in text and "llama3" in text and "$0.014" in text, text
    browser.choose("Group by", "model")
    wait_for(lambda: "group=model" in driver.current_url, "the grouping is in the address")
    browser.sees("3 shown")
    browser.fill("Model", "llama3" + Keys.ENTER)
    wait_for(lambda: "model=llama3" in driver.current_url, "the filter is in the address")
    browser.sees("1 shown")
    browser.press("Clear")
    browser.sees("3 shown")
    # A pasted key becomes its id.
    browser.fill("Key", KEY + Keys.ENTER)
    wait_for(lambda: "key_id=" in driver.current_url and KEY not in driver.current_url, "the key id is in the address")
    browser.sees("2 shown")
    browser.press("Custom")
    wait_for(lambda: "range=custom" in driver.current_url and "from=" in driver.current_url, "the range is in the address")
    browser.field("First day")
    browser.open("usage?range=custom&from=2020-01-01&to=2020-01-31")
    browser.sees("No usage in this period.")
    # The page of a key has its own usage.
    key_id = signed_in(counting).post("/bindings/look-up", {"key": KEY}).json()["key_id"]
    browser.open(f"bindings/{key_id}")
    browser.sees("Usage in the last 30 days")
    assert "gpt-4o" in browser.text() and "gpt-4o-mini" not in browser.text()
    browser.press("All usage of this key")
    browser.sees("Top keys")
    assert browser.complaints() == []
    driver.get("about:blank")


def test_a_live_setting_and_a_broken_configuration(browser, replica):
    assert send_request(replica, KEY).status == 200
    browser.sign_in()
    browser.press("Settings")
    wait_for(fresh(lambda: browser.field("All requests get 503. Open streams continue.").click() or True), "the checkbox is set")
    browser.press("Save maintenance")
    browser.sees("All requests get 503 on every replica until this is reverted.")
    assert send_request(replica, KEY).status == 200, "no change before the confirmation"
    browser.press("Save", "//dialog")
    browser.sees("maintenance saved.")
    wait_for(lambda: send_request(replica, KEY).status == 503, "maintenance is on", 3)
    browser.sees("Maintenance mode: all requests are refused")
    browser.fill("Audit entries are kept for this long.", "1s")
    browser.press("Save retention.audit")
    browser.sees("not a duration between")
    browser.holds("Audit entries are kept for this long.", "1s")
    browser.press("Revert maintenance")
    browser.sees("maintenance reverted to the configuration file.")
    wait_for(lambda: send_request(replica, KEY).status == 200, "maintenance is off", 3)
    text = replica.path.read_text()
    wrong = text.replace("client_ip", "client_pi")
    line = next(number for number, content in enumerate(wrong.splitlines(), 1) if "client_pi" in content)
    browser.press("Configuration")
    browser.driver.execute_script("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))", browser.field("Configuration to check"), wrong)
    browser.press("Check text")
    browser.sees(f"Line {line}, column")
    browser.sees("did you mean `client_ip`?")
    marked = browser.driver.find_element(By.CSS_SELECTOR, ".code .marked").text
    assert marked.startswith(str(line)) and "client_pi" in marked
    replica.path.write_text(wrong)
    browser.press("Reload file")
    browser.sees("Reload failed. The previous configuration stays in force.")
    browser.sees(f"Line {line}, column")
    replica.path.write_text(text)
    browser.press("Reload file")
    browser.sees("is in force")


def test_an_expired_session_and_an_unreachable_keylatch(browser, replica):
    assert send_request(replica, KEY).status == 200
    browser.sign_in()
    key_id = signed_in(replica).post("/bindings/look-up", {"key": KEY}).json()["key_id"]
    browser.sees("Live")
    browser.open(f"bindings/{key_id}")
    browser.fill("Note", "typed before it ended")
    admin = signed_in(replica)
    for session in admin.get("/account/sessions").json()["items"]:
        if not session["current"]:
            admin.call("DELETE", f"/account/sessions/{session['id']}", status=204)
    browser.press("Save")
    browser.sees("Sign in again")
    browser.fill("Password", PASSWORD)
    browser.press("Sign in", "//dialog")
    wait_for(lambda: "Sign in again" not in browser.text(), "the session works again")
    browser.holds("Note", "typed before it ended")
    browser.fill("Note", "kept")
    replica.stop()
    browser.press("Save")
    browser.sees("Keylatch cannot be reached.")
    browser.holds("Note", "kept")
    browser.sees("Reconnecting…")
    replica.start()
    browser.sees("Live", 30)
    browser.press("Save")
    browser.sees("Binding saved.")
    assert all("net::ERR_" in each for each in browser.complaints())


def test_a_sign_in_through_a_provider(browser, replica, driver):
    with Provider() as provider:
        browser.sign_in()
        browser.sees("Dashboard")
        browser.open("accounts")
        browser.press("Add a provider")
        for label, text in (("Name", "corp"), ("Button text", "The Company"), ("Issuer", "http://127.0.0.1:1"), ("Client ID", CLIENT), ("Client secret", SECRET)):
            browser.fill_in("New provider", label, text)
        browser.fill("Values for viewer", "staff")
        browser.press("Save")
        browser.sees("must begin with `https://`")
        browser.holds("Client secret", SECRET)
        browser.fill("Issuer", provider.url)
        browser.press("Allow private addresses and http")
        browser.press("Save")
        browser.sees("Provider corp saved.")
        browser.press("Check")
        browser.sees("corp works.")
        browser.press("Sign out")
        browser.sees("Sign in to Keylatch")
        # After the provider's redirect the same page opens, and its address contains no sign-in
        # parameters.
        browser.open("intercepts")
        browser.press("Sign in with The Company")
        browser.sees("corp:ann")
        browser.sees("Intercepts")
        wait_for(lambda: driver.current_url == f"{browser.base}#/intercepts", driver.current_url)
        assert "Settings" in browser.text() and "Accounts" not in browser.text().split("Your account")[0].split("Audit")[1]
        browser.press("Sign out")
        browser.sees("Sign in to Keylatch")
        # A refused user sees the reason.
        provider.person = {"sub": "2", "preferred_username": "eve", "groups": ["guests"]}
        browser.press("Sign in with The Company")
        browser.sees("knows you as corp:eve")
        provider.denies = "access_denied"
        browser.press("Sign in with The Company")
        browser.sees("You may not.")
        assert browser.complaints() == []


def test_the_dashboard_shows_outages_first(start, driver):
    replica = start(free_port(), route_filters=FREE, storage=STORE, env=ENV)
    wait_for(lambda: replica.health()[1]["status"] == "down", "the upstream is down")
    browser = Browser(driver, replica)
    browser.open()
    browser.sign_in()
    browser.sees("Upstream model: no working server.")
    text = browser.text()
    assert text.index("Down: no upstream has a working server.") < text.index("Requests per second")
    assert driver.find_element(By.CSS_SELECTOR, ".notice.bad[role=alert]").is_displayed()


def test_both_languages_and_permitted_actions(browser, replica):
    admin = signed_in(replica)
    admin.create_account("looker", "viewer")
    browser.sign_in("looker", "another-horse-battery")
    browser.sees("Requests per second")
    assert "Accounts" not in browser.text(), "actions without permission are hidden"
    assert browser.driver.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
    browser.driver.find_element(By.CSS_SELECTOR, ".appearance option[value='zh']").click()
    browser.sees("每秒请求数")
    assert browser.driver.find_element(By.TAG_NAME, "html").get_attribute("lang") == "zh-Hans"
    browser.press("设置")
    browser.sees("所有请求得到 503")
    assert not browser.driver.find_elements(By.XPATH, "//button[normalize-space()='保存']")
    browser.driver.refresh()
    browser.sees("所有请求得到 503")
    with driver_for("zh-CN") as chinese:
        other = Browser(chinese, replica)
        other.open()
        other.sees("登录 Keylatch")


def test_every_page_is_accessible(browser, replica, driver):
    """axe-core finds no violation on any page, in both themes and several widths, and no page is
    wider than the window."""
    assert send_request(replica, KEY).status == 200 and send_request(replica, KEY, "127.0.0.2").status == 403
    axe = Axe()
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}

    def check_page(what):
        found = [(one["id"], one["nodes"][0]["html"][:200]) for one in axe.run(driver, options=rules)["violations"] if one["impact"] in ("serious", "critical", "moderate")]
        assert found == [], what
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), f"{what} is too wide"

    check_page("sign-in")
    browser.sign_in()
    browser.sees("Requests per second")
    key_id = signed_in(replica).post("/bindings/look-up", {"key": KEY}).json()["key_id"]
    wait_for(lambda: signed_in(replica).get("/logs").json()["items"], "the intercept is written")
    try:
        everything = [*PAGES, f"bindings/{key_id}"]
        for theme, width, pages in (("light", 1360, everything), ("dark", 360, everything), ("dark", 2560, ["dashboard", "bindings"])):
            driver.execute_script(f"localStorage.setItem('keylatch.theme', '{theme}')")
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500})
            browser.open()
            for page in pages:
                driver.execute_script(f"location.hash = '#/{page}'")
                wait_for(lambda: driver.find_elements(By.ID, "title") and "Loading…" not in browser.text(), f"{page} is there")
                # axe measures colours, so transitions must have ended.
                time.sleep(0.2)
                check_page(f"{page} {theme} {width}")
                assert not driver.find_elements(By.XPATH, "//*[@style and ancestor::main and not(ancestor::*[contains(@class, 'uplot')]) and not(contains(@class, 'uplot'))]"), "no inline styles"
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_keyboard_navigation(browser, replica, driver):
    def active():
        return driver.execute_script("return document.activeElement.textContent || document.activeElement.name || ''").strip()

    def press(*keys):
        webdriver.ActionChains(driver).send_keys(*keys).perform()

    browser.field("Name").send_keys("admin")
    press(Keys.TAB, PASSWORD, Keys.ENTER)
    browser.sees("Requests per second")
    driver.execute_script("document.body.focus(); document.activeElement.blur()")
    for _ in range(30):
        press(Keys.TAB)
        if active() == "Settings":
            break
    press(Keys.ENTER)
    browser.sees("within a second")
    assert active() == "Settings", "a screen reader announces the current page"


def test_assets_and_content_security_policy(replica):
    page = raw.request(replica.admin, "/admin/ui/")
    policy = page.header("content-security-policy")
    assert page.status == 200 and "default-src 'none'" in policy and "unsafe" not in policy and page.header("x-frame-options") == "DENY"
    assert raw.request(replica.admin, "/").header("location") == "/admin/ui/"
    script = raw.request(replica.admin, "/admin/ui/app.js")
    assert script.header("content-type").startswith("text/javascript")
    assert raw.request(replica.admin, "/admin/ui/app.js", headers=[("If-None-Match", script.header("etag"))]).status == 304
    for path in ("/admin/ui/../Cargo.toml", "/admin/ui/%2e%2e/lib.rs", "/admin/ui/no-such.js", "/admin/ui/vendor", "/admin/ui/vendor/README.md"):
        assert raw.request(replica.admin, path).status == 404, path


def test_every_text_has_a_translation():
    zh = dict(re.findall(r'^  "?((?:[^"\\:]|\\.|:(?! "))+?)"?: "((?:[^"\\]|\\.)*)",$', (CONSOLE / "zh.js").read_text(), re.M))
    used = set()
    for path in [*CONSOLE.glob("*.js"), *CONSOLE.glob("pages/*.js")]:
        used |= set(re.findall(r'\bt\(\s*"((?:[^"\\]|\\.)*)"', path.read_text()))
        used |= {text for pair in re.findall(r'\bt\([^"()]*\? "([^"]*)" : "([^"]*)"', path.read_text()) for text in pair}
    used |= set(re.findall(r'means: "([^"]*)"', (ROOT / "src/settings/mod.rs").read_text()))
    used |= set(re.findall(r'::\w+, "[a-z-]+", "([^"]*)"', (ROOT / "src/admin/problem.rs").read_text()))
    assert len(used) > 200 and used - set(zh) == set()
    for text, said in zh.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", said)), text


def test_vendored_libraries_carry_their_licences():
    vendor = CONSOLE / "vendor"
    listed = set(re.findall(r"[\w-]+\.(?:js|css)", (vendor / "README.md").read_text())) - {"uPlot.esm.js"}
    assert {path.name for path in vendor.iterdir() if path.suffix in (".js", ".css")} <= listed
    licences = (vendor / "LICENSES.txt").read_text()
    assert all(name in licences for name in ("== preact", "== htm", "== uplot"))
    assert json.dumps(sorted(path.name for path in pathlib.Path(CONSOLE).iterdir() if path.is_dir())) == '["pages", "vendor"]'
