"""The page in a real browser: ask, rank by mouse and keys with ties, undo, reload, two people, hostile text, contrast.

Needs Chromium with its driver (Debian's packages chromium and chromium-driver) and selenium; skipped where they are
not.
"""

import shutil
import threading
import time

import pytest
import torch
from runs import records_of

import page
from core.server import Server
from data.folder import write_jsonl

selenium = pytest.importorskip("selenium", reason="selenium is not installed: the page is not tried in a browser")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (BROWSER and DRIVER):
    pytest.skip("no chromium and chromedriver: the page is not tried in a browser", allow_module_level=True)

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

HOSTILE = (
    '<img src=x onerror="document.title=1;window.hacked=1"><script>window.hacked=2</script><b>bold</b> & "q" \'s\''
)
TEXTS = [HOSTILE, "It is red.", "It is blue, I think, or it may be red.", "No."]
N_TASKS = 12


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(flag)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=Service(DRIVER), options=options)
    yield driver
    driver.quit()


@pytest.fixture
def site(data, run, tmp_path):
    """A page whose answers to rank are written by hand. -> (address, folder of people, functions one may replace)"""
    folder = shutil.copytree(data, tmp_path / "data")
    with open(folder / "prompts.jsonl", "a") as file:
        file.write('{"prompt": "Which is it?\\n", "user": "t", "split": "test"}\n')
    people = tmp_path / "people"
    tasks = [
        {"prompt": f"Q{i} {HOSTILE}\n", "completions": TEXTS, "ended": [True] * 4, "split": "train"}
        for i in range(N_TASKS)
    ]
    write_jsonl(people / "answers.jsonl", tasks)
    small = dict(out=str(run), data=str(folder), people=str(people), max_new_tokens=6, device="cpu", threads=1)
    served = page.Page(page.Config(**small), torch.device("cpu"))
    functions = served.functions()
    html = (page.Path(page.__file__).parent / "page.html").read_bytes()
    server = Server("127.0.0.1", 0, html, functions)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", people, functions
    server.shutdown()
    thread.join()
    server.server_close()


def actions(browser):
    """Mouse and keys, without a pause for each movement."""
    return ActionChains(browser, duration=20)


def until(condition, seconds=10):
    """Wait until a condition holds. -> its value"""
    end = time.time() + seconds
    while True:
        try:
            value = condition()
        except (selenium.common.exceptions.WebDriverException, LookupError, StopIteration):
            value = None
        if value:
            return value
        assert time.time() < end, "waited too long"
        time.sleep(0.02)


def all_of(browser, selector):
    return browser.find_elements(By.CSS_SELECTOR, selector)


def one(browser, selector):
    return until(lambda: next((e for e in all_of(browser, selector) if e.is_displayed()), None))


def click(browser, selector):
    until(lambda: one(browser, selector).click() is None)


def open_as(browser, address, name, place="rank", only_rank=True):
    """Open a place of the page as somebody."""
    browser.get(address)
    until(lambda: all_of(browser, "#models input"))
    box = one(browser, "#name")
    box.clear()
    box.send_keys(name + Keys.ENTER)
    click(browser, f"nav a[href='#{place}']")
    if place == "rank" and only_rank:
        until(lambda: all_of(browser, "#next, #submit"))
        if not one(browser, "#only_rank").is_selected():
            click(browser, "#only_rank")
        until(lambda: all_of(browser, "#submit"))


def card(browser, words):
    """The answer that begins with these words, on the board."""
    return until(lambda: next(c for c in all_of(browser, ".answer") if words in c.text))


def rank_of(browser, words):
    return int(card(browser, words).find_element(By.XPATH, "ancestor::*[@data-rank]").get_attribute("data-rank"))


def count(browser):
    return one(browser, "#count").text


def errors(browser, address):
    """What the browser complains about on this page: a policy that was violated, an exception."""
    messages = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return [message for message in messages if message.startswith(address)]


def ranks_by_text(record):
    return dict(zip(record["completions"], record["ranks"]))


WANTED = {TEXTS[1]: 1, TEXTS[2]: 2, TEXTS[3]: 2, TEXTS[0]: 3}


def test_ask(browser, site):
    """Every model answers; every token can be looked at, by mouse and by keys; other numbers, other colours."""
    address, _, functions = site
    open_as(browser, address, "Ann", "ask")
    one(browser, "#prompt").send_keys("What colour is it?" + Keys.CONTROL + Keys.ENTER)
    cards = until(lambda: len(all_of(browser, "#answers .tokens")) == 3 and all_of(browser, "#answers .card"))
    assert [c.find_element(By.TAG_NAME, "b").text for c in cards] == ["GPT", "SFT", "PPO's start"]
    sent = {
        "prompt": "What colour is it?",
        "model": "sft",
        "scorer": "reward",
        "temperature": 1,
        "max_new_tokens": 6,
        "seed": 1,
    }
    answer = functions["/api/ask"](sent | {"best_of": 1})
    tokens = all_of(browser, "[data-model=sft] .tok")
    assert len(tokens) == len(answer["tokens"])
    assert f"{answer['score']:+.2f}".replace("-", "−") in one(browser, "[data-model=sft] .facts").text
    actions(browser).move_to_element(tokens[0]).perform()
    look = one(browser, "[data-model=sft] .look").text
    first = answer["tokens"][0]
    for number in (first["logprobs"], first["ref_logprobs"], first["rewards"]):
        assert f"{number:+.4f}".replace("-", "−") in look
    assert f"{100 * first['top'][0]['p']:.1f} %" in look
    tokens[0].click()
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert (
        browser.switch_to.active_element == tokens[1]
        and "token 2 could be" in one(browser, "[data-model=sft] .look").text
    )
    before = tokens[0].value_of_css_property("background-color")
    one(browser, "#colour").send_keys("log-prob, policy")
    assert tokens[0].value_of_css_property("background-color") != before
    assert errors(browser, address) == []


def test_rank_by_mouse_with_ties_then_undo(browser, site):
    address, people, _ = site
    open_as(browser, address, "Ann")
    for words, rank in (("It is red", 1), ("It is blue", 2), ("No.", 2), ("<img", 3)):
        target = one(browser, f"[data-rank='{rank}'] .name")
        actions(browser).drag_and_drop(card(browser, words).find_element(By.CLASS_NAME, "letter"), target).perform()
        assert rank_of(browser, words) == rank
    assert "tied with" in card(browser, "No.").get_attribute("aria-label")
    click(browser, "#submit")
    until(lambda: count(browser) == "1 ranked")
    (record,) = records_of(people / "comparisons.jsonl")
    assert ranks_by_text(record) == WANTED and record["labeler"] == "Ann"
    click(browser, "#undo")
    until(lambda: count(browser) == "0 ranked")
    assert records_of(people / "comparisons.jsonl") == []
    assert {text: rank_of(browser, text[:9]) for text in TEXTS} == WANTED, "it is shown as it was"
    card(browser, "No.").click()  # tap an answer, then a rank
    one(browser, "[data-rank='4']").click()
    click(browser, "#submit")
    until(lambda: count(browser) == "1 ranked")
    assert ranks_by_text(records_of(people / "comparisons.jsonl")[0]) == {**WANTED, "No.": 4}


def test_rate_and_rank_wholly_by_keyboard(browser, site):
    """Page (a) and page (b) of Fig. 12, from the first rating to the submission, without the mouse."""
    address, people, _ = site
    open_as(browser, address, "Kim", only_rank=False)
    if one(browser, "#only_rank").is_selected():
        click(browser, "#only_rank")
    until(lambda: all_of(browser, "#next"))
    browser.execute_script("document.activeElement.blur()")
    marks = {}
    for i in range(4):
        until(
            lambda i=i: (
                f"{i + 1} of 4" in one(browser, "h1").text or f"{i + 1} of 4" in one(browser, "#ranking h1").text
            )
        )
        marks[one(browser, "#rated").text] = 7 - i
        actions(browser).send_keys(str(7 - i)).perform()
        until(lambda: browser.switch_to.active_element.get_attribute("id") == "next")
        actions(browser).send_keys(Keys.ENTER).perform()
    until(lambda: all_of(browser, "#board"))
    for _ in range(30):  # Tab leads to the answers
        if "answer" in (browser.switch_to.active_element.get_attribute("class") or ""):
            break
        actions(browser).send_keys(Keys.TAB).perform()
    for _ in range(4):
        words = browser.switch_to.active_element.text
        rank = next(rank for text, rank in WANTED.items() if text[:9] in words)
        if rank == 2:  # by arrows: down from the pool is rank 1, down again rank 2
            actions(browser).send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP).perform()
        else:
            actions(browser).send_keys(str(rank)).perform()
        pool = all_of(browser, "[data-rank='0'] .answer")
        if pool:
            for _ in range(8):
                if browser.switch_to.active_element in pool:
                    break
                actions(browser).send_keys(Keys.ARROW_LEFT).perform()
    actions(browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    until(lambda: count(browser) == "1 ranked")
    (record,) = records_of(people / "comparisons.jsonl")
    assert ranks_by_text(record) == WANTED
    assert dict(zip(record["completions"], record["ratings"])) == marks


def test_a_reload_in_the_middle_loses_nothing(browser, site):
    address, people, _ = site
    open_as(browser, address, "Lou", only_rank=False)
    if one(browser, "#only_rank").is_selected():
        click(browser, "#only_rank")
    until(lambda: all_of(browser, "#next"))
    prompt, text = one(browser, "#instruction").text, one(browser, "#rated").text
    click(browser, ".likert button:nth-child(5)")
    click(browser, "#ranking .two > .card:last-child details:nth-of-type(2) summary")
    one(browser, "textarea[aria-label=notes]").send_keys("a note")
    browser.refresh()
    until(lambda: one(browser, "#instruction").text == prompt and one(browser, "#rated").text == text)
    assert one(browser, ".likert [aria-checked=true]").text == "5"
    assert one(browser, "textarea[aria-label=notes]").get_attribute("value") == "a note"
    click(browser, "#only_rank")
    for i, words in enumerate(("It is red", "It is blue")):
        card(browser, words).send_keys(str(i + 1))
    browser.refresh()
    until(lambda: all_of(browser, "#board"))
    assert one(browser, "#instruction").text == prompt
    assert (rank_of(browser, "It is red"), rank_of(browser, "It is blue"), rank_of(browser, "No.")) == (1, 2, 0)
    click(browser, "#submit")
    assert "not ranked yet" in one(browser, "#say").text and not (people / "comparisons.jsonl").exists()
    click(browser, "#skip")
    until(lambda: one(browser, "#instruction").text != prompt)
    assert len(records_of(people / "skipped.jsonl")) == 1


def rank_all(browser):
    for i, letter in enumerate(all_of(browser, ".answer")):
        letter.send_keys(str(i + 1))
    click(browser, "#submit")


def test_a_lost_acknowledgement_is_asked_for_again_and_kept_once(browser, site):
    address, people, functions = site
    open_as(browser, address, "Max")
    rank, calls = functions["/api/rank"], []

    def rank_and_vanish(request):
        calls.append(request["id"])
        answer = rank(request)
        if len(calls) == 1:
            raise ConnectionError("cut")
        return answer

    functions["/api/rank"] = rank_and_vanish
    rank_all(browser)
    until(lambda: "Not saved yet" in one(browser, "#say").text)
    until(lambda: count(browser) == "1 ranked")
    assert calls == [calls[0]] * 2 and len(records_of(people / "comparisons.jsonl")) == 1
    assert len(errors(browser, address)) == 1, "the cut connection"


def test_two_people_at_once(browser, site):
    """Two windows of one browser, each with a name of its own and other prompts."""
    address, people, _ = site
    first = browser.current_window_handle
    open_as(browser, address, "Ann")
    browser.switch_to.new_window("window")
    second = browser.current_window_handle
    try:
        open_as(browser, address, "Ben")
        for turn in range(2):
            for window in (second, first):
                browser.switch_to.window(window)
                until(lambda turn=turn: count(browser) == f"{turn} ranked")
                rank_all(browser)
                until(lambda turn=turn: count(browser) == f"{turn + 1} ranked")
    finally:
        browser.switch_to.window(second)
        browser.close()
        browser.switch_to.window(first)
    records = records_of(people / "comparisons.jsonl")
    assert [r["labeler"] for r in records] == ["Ben", "Ann"] * 2 and len({r["task"] for r in records}) == 4


def test_hostile_text_is_text(browser, site):
    """In prompts, answers, names, notes: shown as it is written, run by nobody."""
    address, people, functions = site
    open_as(browser, address, "<b>Eve</b>")
    assert HOSTILE in one(browser, "#instruction").text and HOSTILE in card(browser, "<img").text
    rank_all(browser)
    until(lambda: count(browser) == "1 ranked")
    until(lambda: "<b>Eve</b>" in one(browser, "#people_rank").text)
    ask = functions["/api/ask"]

    def hostile_tokens(request):
        answer = ask(request)
        answer["tokens"][0] |= {"text": HOSTILE, "top": [{"text": HOSTILE, "p": 0.5, "ref": 0.5, "chosen": True}]}
        return answer

    functions["/api/ask"] = hostile_tokens
    click(browser, "nav a[href='#ask']")
    one(browser, "#prompt").send_keys("<b>" + Keys.CONTROL + Keys.ENTER)
    until(lambda: len(all_of(browser, "#answers .tokens")) == 3)
    all_of(browser, ".tok")[0].click()
    assert HOSTILE in all_of(browser, ".tok")[0].text and "onerror" in one(browser, ".look").text
    click(browser, "nav a[href='#write']")
    one(browser, "#demo_prompt").send_keys(HOSTILE)
    one(browser, "#demo_answer").send_keys(HOSTILE)
    click(browser, "#demo_submit")
    until(lambda: "1 written" in one(browser, "#demo_count").text)
    click(browser, "#demo_undo")
    until(lambda: one(browser, "#demo_prompt").get_attribute("value") == HOSTILE)
    assert browser.execute_script("return window.hacked === undefined && document.title.startsWith('nanoInstruct')")
    assert all_of(browser, "main img, main b b, main script") == [] == errors(browser, address)


def test_compare_two_models(browser, site):
    address, people, _ = site
    open_as(browser, address, "Ann")
    click(browser, "#to_compare")
    until(lambda: all_of(browser, "[data-vote]"))
    actions(browser).send_keys("1").perform()
    until(lambda: one(browser, "#pair_count").text == "1 of 2")
    click(browser, "[data-vote='0']")
    until(lambda: one(browser, "#pair_count").text == "2 of 2")
    votes = records_of(people / "judgements.jsonl")
    assert [v["preferred"] for v in votes] == [1, 0] and votes[0]["models"] == votes[1]["models"][::-1]
    until(lambda: "preferred by people" in one(browser, "#people_rank").text)
    click(browser, "#undo_pair")
    until(lambda: one(browser, "#pair_count").text == "1 of 2")
    click(browser, "#to_rank")


def test_watch_draws_the_logs_as_they_grow(browser, site, run):
    address, _, _ = site
    write_jsonl(run / "ppo.jsonl", [{"step": i, "score": i / 10, "kl": 0.0} for i in range(1, 6)])
    open_as(browser, address, "Ann", "watch")
    until(lambda: "score from 0.1 to 0.5" in (all_of(browser, "#curves svg")[0].get_attribute("aria-label") or ""))
    with open(run / "ppo.jsonl", "a") as file:
        file.write('{"step": 6, "score": 0.9, "kl": 0.1}\n')
    browser.execute_script("watch()")  # as it does every three seconds
    until(lambda: "score from 0.1 to 0.9" in all_of(browser, "#curves svg")[0].get_attribute("aria-label"))
    assert errors(browser, address) == []


CONTRAST = """
// Every text on the page against what is behind it (WCAG 2: 4.5, large text 3). -> the ones that are too faint
const rgba = (text) => { const n = text.match(/[\\d.]+/g).map(Number);\
 return [n[0], n[1], n[2], n.length > 3 ? n[3] : 1]; };
const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
const light = (c) => {\
 const [r, g, b] = c.slice(0, 3).map((v) => {\
 v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });\
 return .2126 * r + .7152 * g + .0722 * b; };
const behind = (node) => {\
 const layers = [];\
 for (let n = node; n && n.nodeType === 1; n = n.parentElement)\
 layers.push(rgba(getComputedStyle(n).backgroundColor));\
 return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]); };
const faint = [];
for (const node of document.querySelectorAll("body *")) {
  if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())\
 || !node.getClientRects().length) continue;
  if (["SCRIPT", "STYLE", "TITLE", "OPTION"].includes(node.tagName)) continue;
  const style = getComputedStyle(node), ink = node.namespaceURI.includes("svg") ? style.fill : style.color;
  const back = behind(node), front = over(rgba(ink), back), [a, b] = [light(front), light(back)].sort((x, y) => y - x);
  const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.7 && Number(style.fontWeight) >= 700);
  if ((a + .05) / (b + .05) < (large ? 3 : 4.5))\
 faint.push(`${node.tagName}.${node.className.baseVal ?? node.className}: \
${((a + .05) / (b + .05)).toFixed(2)} ${node.textContent.slice(0, 20)}`);
}
return faint;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_focus_and_width(browser, site, run, scheme):
    """Every place, light and dark: contrast AA, nothing wider than a phone, a focus that can be seen."""
    address, _, _ = site
    write_jsonl(run / "ppo.jsonl", [{"step": i, "score": i / 10} for i in range(1, 6)])
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    try:
        open_as(browser, address, "Ann", "ask")
        dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 23)"
        assert dark == (scheme == "dark")
        one(browser, "#prompt").send_keys("What colour is it?" + Keys.CONTROL + Keys.ENTER)
        until(lambda: len(all_of(browser, "#answers .tokens")) == 3)
        all_of(browser, ".tok")[0].click()
        for place in ("ask", "rank", "write", "watch", "rank"):
            click(browser, f"nav a[href='#{place}']")
            ready = {
                "ask": ".tok",
                "rank": "#submit, #next, [data-vote]",
                "write": "#demo_submit",
                "watch": "#curves svg",
            }[place]
            until(lambda ready=ready: any(e.is_displayed() for e in all_of(browser, ready)))
            for width in (1400, 400):
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                assert browser.execute_script(CONTRAST) == [], place
                assert browser.execute_script("return document.documentElement.scrollWidth") <= width, place
            if place == "watch":
                click(browser, "nav a[href='#rank']")
                click(browser, "#to_compare")
        click(browser, "#to_rank")
        actions(browser).send_keys(Keys.TAB).perform()
        outline = browser.execute_script("return getComputedStyle(document.activeElement).outline")
        assert "3px" in outline and "solid" in outline
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
