"""`homeport top`: the board in a terminal. Only this module imports textual; what is shown says top_rows.py.

Asks the router each second on a thread of its own, so that a router that hangs does not hold up a key.
"""

import asyncio
import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Button, DataTable, Footer, Label, OptionList, Static

from router import api_client
from router.live import age_text, standing_text
from router.top_rows import LEGEND, Act, Look, Picture, picture, said, silent

LOOK_S = 1.0
SPEED_LOOKS = 5
"""The router polls each host once a second: over some of these seconds a speed is a speed."""
DRAIN_S = 600.0
"""As `homeport drain` does it."""
SAID_S = 10.0
"""What was said stands there for so long."""
MOVE_S = 600.0
"""A long context over a slow network."""
STYLES = {"lost": "red", "asleep": "blue", "unknown": "yellow", "cordoned": "yellow", "draining": "yellow"}
Ask = Callable[[str, str, Any, float], Any]
"""Method, path, body and timeout to the router's answer. Raises Away or Refused."""


def asking(url: str, secret: str) -> Ask:
    """The router at `url`, asked with what lets this machine's owner in."""
    return lambda method, path, body, timeout_s: api_client.ask(url, method, path, body, timeout_s, secret)


class Rows(DataTable[Text | str]):
    """A table whose rows have keys: a new picture of the same rows leaves the chosen one where it is."""

    def __init__(self, titles: Sequence[str], name: str) -> None:
        super().__init__(cursor_type="row", zebra_stripes=False, id=name)
        self._titles = titles
        self._keys: list[str] = []

    def on_mount(self) -> None:
        for title in self._titles:
            self.add_column(title, key=title)

    @property
    def chosen(self) -> str | None:
        """The key of the chosen row; None: there is no row."""
        return self._keys[self.cursor_row] if 0 <= self.cursor_row < len(self._keys) else None

    def fill(self, rows: Mapping[str, Sequence[Text | str]]) -> None:
        """Show these rows, by key."""
        if list(rows) == self._keys:
            for key, cells in rows.items():
                for title, cell in zip(self._titles, cells, strict=True):
                    self.update_cell(key, title, cell, update_width=True)
            return
        chosen = self.chosen
        self.clear()
        self._keys = list(rows)
        for key, cells in rows.items():
            self.add_row(*cells, key=key)
        if chosen is not None and chosen in rows:
            self.move_cursor(row=self._keys.index(chosen))


class Confirm(ModalScreen[bool]):
    """Yes or no; Enter alone is no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape", "answer(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical(classes="box"):
            yield Label(self._question, markup=False)
            with Horizontal():
                yield Button("No (n)", id="no")
                yield Button("Yes (y)", id="yes")

    def on_button_pressed(self, pressed: Button.Pressed) -> None:
        self.dismiss(pressed.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class Choose(ModalScreen[str | None]):
    """One of several names; Escape chooses none."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "None")]

    def __init__(self, question: str, names: Sequence[str]) -> None:
        super().__init__()
        self._question = question
        self._names = names

    def compose(self) -> ComposeResult:
        with Vertical(classes="box"):
            yield Label(self._question, markup=False)
            yield OptionList(*self._names, markup=False)
            yield Label("Enter: this one   Escape: leave it", markup=False)

    def on_option_list_option_selected(self, selected: OptionList.OptionSelected) -> None:
        self.dismiss(self._names[selected.option_index])

    def action_leave(self) -> None:
        self.dismiss(None)


class Top(App[None]):
    """`ask` is the router at `url`. Ends with q and Ctrl-C, and when its terminal or its process is to end."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Static { text-wrap: nowrap; text-overflow: ellipsis; }
    #head { text-style: bold; }
    #trouble { text-wrap: wrap; background: $warning; color: $text; display: none; }
    #trouble.shown { display: block; }
    Rows { height: 1fr; }
    Rows { border-left: blank; }
    Rows:focus { border-left: thick $accent; }
    #about { height: auto; min-height: 4; max-height: 7; border-top: solid $foreground 40%; }
    #legend { text-wrap: wrap; color: $text-muted; }
    .box { width: 95%; max-width: 90; height: auto; border: thick $accent; padding: 1 2; background: $surface; }
    .box Label { width: 100%; text-wrap: wrap; }
    .box Horizontal { height: auto; align: right middle; }
    Confirm, Choose { align: center middle; }
    OptionList { height: auto; max-height: 10; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("tab", "other", "Other list", priority=True),
        Binding("left,right", "other", show=False),
        Binding("d", "machine('drain')", "Drain"),
        Binding("u", "machine('uncordon')", "Uncordon"),
        Binding("e", "end", "End session"),
        Binding("m", "move", "Move it"),
    ]

    def __init__(self, url: str, ask: Ask, look_s: float = LOOK_S) -> None:
        super().__init__()
        self._url = url
        self._ask = ask
        self._look_s = look_s
        self._looks: deque[Look] = deque(maxlen=SPEED_LOOKS)
        self._over = threading.Event()
        self._picture = Picture("", "", (), ())
        self._said: Timer | None = None
        self._head = Static(url, id="head", markup=False)
        self._trouble = Static("", id="trouble", markup=False)
        self._machines = Rows(("machine", "state", "cells", "models", "tokens/s", "sessions"), "machines")
        self._sessions = Rows(("session", "state", "model", "home"), "sessions")
        self._about = Static("", id="about", markup=False)
        self._line = Static(LEGEND, id="legend", markup=False)

    def compose(self) -> ComposeResult:
        yield from (self._head, self._trouble, self._machines, self._sessions, self._about, self._line)
        yield Footer()

    def on_mount(self) -> None:
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not on the main thread
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self._machines.focus()
        threading.Thread(target=self._watch, daemon=True).start()

    def on_unmount(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        """Look, until this ends. On its own thread."""
        while not self._over.is_set():
            try:
                fleet = self._ask("GET", "/api/fleet", None, api_client.ANSWER_S)
                told = self._ask("GET", "/api/sessions", None, api_client.ANSWER_S)
                self._tell(self._saw, Look(time.monotonic(), fleet, tuple(told["sessions"])))
            except (api_client.Away, api_client.Refused) as error:
                self._tell(self._saw_nothing, str(error))
            self._over.wait(self._look_s)

    def _tell(self, told: Callable[[Any], None], what: Any) -> None:
        """On the loop, unless that has ended."""
        with contextlib.suppress(RuntimeError):
            self.call_later(told, what)

    def _saw(self, look: Look) -> None:
        if self._over.is_set():
            return
        self._looks.append(look)
        self._picture = picture(tuple(self._looks), self._url, standing_text, age_text)
        self._head.update(self._picture.head)
        self._warn(self._picture.trouble)
        self._machines.fill(
            {
                row.name: (
                    row.name,
                    Text(row.state, STYLES.get(row.state.split()[-1], "")),
                    row.cells,
                    row.models,
                    row.tokens_per_s,
                    row.sessions,
                )
                for row in self._picture.machines
            }
        )
        self._sessions.fill(
            {row.key: (row.id, row.state, row.model, row.home) for row in self._picture.sessions}
        )
        self._tell_more()

    def _saw_nothing(self, error: str) -> None:
        if self._over.is_set():
            return
        age_s = time.monotonic() - self._looks[-1].at_s if self._looks else None
        self._warn(silent(self._url, error, age_s))

    def _warn(self, words: str) -> None:
        self._trouble.update(words)
        self._trouble.set_class(bool(words), "shown")

    def _tell_more(self) -> None:
        """What is known of the chosen row of the list that has the keys."""
        rows = self._sessions
        found: Sequence[Any] = self._picture.sessions
        if not rows.has_focus:
            rows, found = self._machines, self._picture.machines
        about = (
            found[rows.cursor_row].about if 0 <= rows.cursor_row < len(found) else ("nothing is here yet",)
        )
        self._about.update("\n".join(about))

    def on_data_table_row_highlighted(self) -> None:
        self._tell_more()

    def on_descendant_focus(self) -> None:
        self._tell_more()

    def action_other(self) -> None:
        """To the other of the two lists."""
        (self._sessions if self._machines.has_focus else self._machines).focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Where a question is open, its keys are the only ones."""
        return action == "quit" or len(self.screen_stack) == 1

    def action_machine(self, act: str) -> None:
        name = self._machines.chosen
        if name is None:
            self._say("There is no machine to choose.")
            return
        path = f"/api/machines/{quote(name, safe='')}/{act}"
        if act == "drain":
            asks = f"Drain {name}? Its sessions move within its zone, in {DRAIN_S / 60:.0f} minutes at most."
            wanted = Act("POST", path, {"within_s": DRAIN_S}, asks, f"{name} is being drained.")
        else:
            asks = f"Let {name} take new sessions again?"
            wanted = Act("POST", path, None, asks, f"{name} takes new sessions again.")
        self._confirm(wanted)

    def action_end(self) -> None:
        if (session := self._session()) is not None:
            asks = f"End {session}? Its turn, its context and its home go; its next request begins anew."
            self._confirm(Act("DELETE", _session_path(session), None, asks, f"{session} is ended."))

    def action_move(self) -> None:
        session, key = self._session(), self._sessions.chosen
        if session is None:
            return
        home = next((row.home.rpartition("/")[0] for row in self._picture.sessions if row.key == key), "")
        others = [row.name for row in self._picture.machines if row.name != home]
        if not others:
            self._say("There is no other machine to move it to.")
            return

        def chosen(machine: str | None) -> None:
            if machine is not None:
                asks = f"Move {session} from {home} to {machine}?"
                path, body = f"{_session_path(session)}/move", {"machine": machine}
                self._confirm(Act("POST", path, body, asks, f"{session} is moved.", MOVE_S))

        self.push_screen(Choose(f"Where to? {session} has its home at {home}.", others), chosen)

    def _session(self) -> str | None:
        key = self._sessions.chosen
        if key is None:
            self._say("There is no session to choose.")
            return None
        return key.partition(" ")[0]

    def _confirm(self, act: Act) -> None:
        def answered(yes: bool | None) -> None:
            if yes:
                self._say(f"… {act.method} {act.path}")
                threading.Thread(target=self._do, args=(act,), daemon=True).start()

        self.push_screen(Confirm(act.asks), answered)

    def _do(self, act: Act) -> None:
        """On a thread of its own: a move may take minutes."""
        try:
            told = said(act, self._ask(act.method, act.path, act.body, act.timeout_s))
        except api_client.Refused as refused:
            told = f"Refused: {refused}"
        except api_client.Away as away:
            told = f"The router does not answer: {away}"
        self._tell(self._say, told)

    def _say(self, words: str) -> None:
        """In place of the legend, for a while."""
        if self._said is not None:
            self._said.stop()
        self._line.update(words)
        self._said = self.set_timer(SAID_S, lambda: self._line.update(LEGEND))


def _session_path(session: str) -> str:
    return f"/api/sessions/{quote(session, safe='')}"
