"""The dashboard Sessions and pins: who lives where, who waits, and what it saves that contexts stay at home."""

from configs.grafana.panels import Board, Row, Variable, bars, lines, quantiles, rate, share, stack, stat

CHOSEN = 'machine=~"$machine", model=~"$model"'
STATES = {
    "pinned": "Sessions that have a home.",
    "resident": "Whose context is in the engine.",
    "parked": "Whose context was saved, and resumes in milliseconds.",
    "running": "That are answered now.",
    "waiting": "That are in a line now.",
}


def _of_each(what: str, total: str) -> str:
    """`parks` have seconds and bytes."""
    return share(
        rate(f"homeport_{what}_{total}_total", "replica", CHOSEN),
        rate(f"homeport_{what}s_total", "replica", CHOSEN),
    )


NOW = Row(
    "Now",
    (
        *(
            stat(state.capitalize(), f'sum(homeport_sessions{{{CHOSEN}, state="{state}"}})', says)
            for state, says in STATES.items()
        ),
        stat("Places", f"sum(homeport_places{{{CHOSEN}}})", "So many can be resident at once."),
    ),
)
HOMES = Row(
    "Homes",
    (
        lines(
            "Sessions by state",
            f"sum by (state) (homeport_sessions{{{CHOSEN}}})",
            "{{state}}",
            "Pinned are all that have a home; resident and parked, where their contexts are.",
        ),
        bars(
            "Pinned by replica",
            f'sum by (replica) (homeport_sessions{{{CHOSEN}, state="pinned"}})',
            "{{replica}}",
            "Where many live while others are empty: `homeport move SESSION MACHINE`.",
        ),
        stack(
            "Pins by outcome",
            rate("homeport_pin_outcomes_total", "pin"),
            "{{pin}}",
            "Answers a second: a new home, the one it had (kept), another one (moved), none, refused. All models.",
            "reqps",
        ),
        stack(
            "Refused pins",
            rate("homeport_pin_outcomes_total", "reason", 'pin="refused"'),
            "{{reason}}",
            "A second, by the code of the error that the client was told. All models.",
            "reqps",
        ),
        stack(
            "Leases",
            rate("homeport_leases_total", "result", CHOSEN),
            "{{result}}",
            "A second: granted, refused, or not granted within the model's queue (expired).",
            "reqps",
        ),
        stack(
            "Leases that were not granted",
            rate("homeport_leases_total", "reason", f'{CHOSEN}, result!="granted"'),
            "{{reason}}",
            "A second, and why.",
            "reqps",
        ),
    ),
)
LINES = Row(
    "Lines",
    (
        lines(
            "Waiting by replica",
            f'sum by (replica) (homeport_sessions{{{CHOSEN}, state="waiting"}})',
            "{{replica}}",
            "Turns in each line now.",
            width=12,
        ),
        quantiles(
            "Waited",
            "homeport_line_wait_seconds",
            "replica",
            "What turns waited before they ran. More than a minute for one in ten is an alert.",
            CHOSEN,
            width=12,
        ),
    ),
)
CONTEXTS = Row(
    "Contexts",
    (
        lines(
            "Prompt tokens that were still there",
            share(
                rate("homeport_prompt_tokens_total", "model", f'{CHOSEN}, source="cached"'),
                rate("homeport_prompt_tokens_total", "model", CHOSEN),
            ),
            "{{model}}",
            "Of all prompt tokens. These were not evaluated again: what coming home saves.",
            "percentunit",
        ),
        lines(
            "Parks",
            rate("homeport_parks_total", "replica", CHOSEN),
            "{{replica}}",
            "Contexts saved a second, since their session gave way. Many: too few places, or too short a hold.",
            "ops",
        ),
        lines(
            "Resumes",
            rate("homeport_resumes_total", "replica", CHOSEN),
            "{{replica}}",
            "Saved contexts that came back, a second.",
            "ops",
        ),
        lines("Time of a park", _of_each("park", "seconds"), "{{replica}}", "On average.", "s"),
        lines("Time of a resume", _of_each("resume", "seconds"), "{{replica}}", "On average.", "s"),
        lines("Size of a park", _of_each("park", "bytes"), "{{replica}}", "On average.", "bytes"),
        stack(
            "Parked in memory",
            f'sum by (replica) (homeport_parked_bytes{{{CHOSEN}, where="memory"}})',
            "{{replica}}",
            "At most parking.memory in each replica.",
            "bytes",
            12,
        ),
        stack(
            "Parked on disk",
            f'sum by (replica) (homeport_parked_bytes{{{CHOSEN}, where="disk"}})',
            "{{replica}}",
            "At most parking.disk in each replica.",
            "bytes",
            12,
        ),
    ),
)
BOARD = Board(
    "sessions-and-pins",
    "homeport: Sessions and pins",
    "Who lives where, who waits, and what it saves that a session's context stays at its home.",
    (Variable("machine", "homeport_machine_up"), Variable("model", "homeport_places")),
    (NOW, HOMES, LINES, CONTEXTS),
)
