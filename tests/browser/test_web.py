"""The pages' files in a browser."""

from pathlib import Path

from tests.browser.tab import Beside, Tab
from tests.standins import AnswersHost, routed


def test_the_pages_are_there_and_run_nothing_but_their_own(beside: Beside, tab: Tab, tmp_path: Path) -> None:
    router = beside.enter(routed(tmp_path, AnswersHost("m0/0")))
    for path in ("/", "/desk/m0"):
        answer = tab.page.goto(router.url + path)
        assert answer is not None
        assert answer.status == 200
    tab.expects.append("Content Security Policy")
    ran = tab.page.evaluate(
        "() => { const made = document.createElement('script'); made.textContent = 'window.ran = true';"
        " document.body.append(made); return window.ran === true; }"
    )
    assert not ran
