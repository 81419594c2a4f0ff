"""
What the demo in a browser shows, as HTML: functions of what was written, and the page's CSS.

    show_writing(writing, step=1, coloring="expert")
"""

import re
from collections.abc import Sequence
from html import escape

from modeling_yan.evaluation.drafts import CALLS, Position, Writing, draft_text
from modeling_yan.evaluation.peers import Lane

COLORINGS = ("expert", "confidence")
# Seconds that the slower lane of a race is replayed in.
RACE_SECONDS = 4.0
EMPTY = '<div class="yan"><div class="yan-empty">{}</div></div>'

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.yan-head h1 { font-size: 1.9rem; font-weight: 750; letter-spacing: -.02em; margin: 0; }
.yan-head p { margin: .15rem 0 0; opacity: .72; }
.yan { --yan-line: rgba(120, 120, 140, .22); --l: 86%; --s: 78%; --sure: #7dd3c0; --unsure: #ffc66b; --ink: #16181d;
  font-size: 1rem; line-height: 1.5; }
.dark .yan { --l: 27%; --s: 48%; --sure: #12564c; --unsure: #8a5a0a; --ink: #f2f3f5; }
.yan-panel, .yan-empty, .yan-error { border: 1px solid var(--yan-line); border-radius: 14px; padding: 18px 20px;
  background: var(--background-fill-primary); }
.yan-empty { display: grid; place-items: center; min-height: 250px; opacity: .6; text-align: center; }
.yan-error { border-color: #e5484d; border-left-width: 5px; }
.yan-top { display: flex; flex-wrap: wrap; align-items: center; gap: 6px; margin-bottom: 14px; min-height: 34px; }
.yan-step { border: 1px solid var(--yan-line); border-radius: 999px; padding: 1px 12px; font-size: .82rem;
  opacity: .55; }
.yan-step.seen { opacity: 1; }
.yan-step.now { background: var(--ink); color: var(--background-fill-primary); opacity: 1; }
.yan-clock { margin-left: auto; font-size: .86rem; opacity: .8; font-variant-numeric: tabular-nums; }
.yan-clock b { font-size: 1.35rem; opacity: 1; }
.yan-canvas { min-height: 136px; line-height: 2.35; font-size: 1.08rem; }
.yan-t { color: var(--ink); border-radius: 6px; padding: 3px 5px; margin: 0 2px; white-space: pre-wrap;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.by-expert .yan-t, .by-expert .yan-b, .by-expert .yan-k { background: hsl(var(--h) var(--s) var(--l)); }
.by-confidence .yan-t, .by-confidence .yan-b { background: color-mix(in oklab, var(--sure) var(--p), var(--unsure)); }
.yan-b { display: inline-block; width: 6px; height: 6px; border-radius: 50%; margin: 0 2px; vertical-align: middle;
  filter: saturate(1.3) brightness(.93); }
.dark .yan-b { filter: saturate(1.3) brightness(1.35); }
.yan-noise .yan-t { filter: blur(.55px); opacity: .62; }
.yan-new { animation: yan-pop .45s ease-out; }
@keyframes yan-pop { from { opacity: .1; filter: blur(4px); } }
.yan-legend { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 14px; margin-top: 14px; padding-top: 10px;
  border-top: 1px solid var(--yan-line); font-size: .82rem; }
.yan-legend span { display: inline-flex; align-items: center; gap: 6px; }
.yan-k { width: 14px; height: 14px; border-radius: 4px; display: inline-block; }
.yan-scale { width: 110px; height: 12px; border-radius: 6px;
  background: linear-gradient(90deg in oklab, var(--unsure), var(--sure)); }
.yan-dot { width: 6px; height: 6px; border-radius: 50%; background: currentColor; opacity: .5; }
.yan-rows { margin-top: 14px; font-size: .9rem; }
.yan-rows div { display: grid; grid-template-columns: 72px 1fr; gap: 10px; padding: 5px 0;
  border-top: 1px solid var(--yan-line); }
.yan-rows div > b { opacity: .6; font-weight: 500; }
.yan-rows .restored { white-space: pre-wrap; overflow-wrap: anywhere; }
.yan-rows .noise { opacity: .55; display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical;
  overflow: hidden; }
.yan-rows u { text-decoration-thickness: 2px; text-underline-offset: 3px; text-decoration-color: #e08a00; }
.yan-lane { border: 1px solid var(--yan-line); border-radius: 14px; padding: 16px 20px; margin-bottom: 12px; }
.yan-lane header { display: flex; align-items: baseline; gap: 10px; flex-wrap: wrap; }
.yan-lane header b { font-size: 1.05rem; }
.yan-lane header .ms { margin-left: auto; font-size: 1.5rem; font-weight: 700; font-variant-numeric: tabular-nums; }
.yan-lane small { opacity: .7; display: block; }
.yan-track { height: 8px; border-radius: 4px; background: var(--yan-line); margin: 10px 0; overflow: hidden; }
.yan-track i { display: block; height: 100%; border-radius: 4px; background: hsl(250 70% 62%);
  animation: yan-run linear both; transform-origin: left; }
.yan-lane.peer .yan-track i { background: hsl(28 85% 55%); }
@keyframes yan-run { from { transform: scaleX(0); } }
.yan-lane p { min-height: 3em; margin: 6px 0 0; overflow-wrap: anywhere; }
.yan-lane p span { animation: yan-show 1ms both; }
@keyframes yan-show { from { opacity: 0; } }
.yan-verdict { font-size: 1.05rem; margin: 4px 2px 10px; }
#coloring .wrap { flex-wrap: nowrap; gap: 6px; }
#coloring label { padding: 6px 9px; }
#words .wrap { gap: 5px; }
#words label { padding: 3px 9px; }
#words input { display: none; }
#words span { margin-left: 0; }
#canvas, #lanes, #filled, #canvas > div, #lanes > div, #filled > div { padding: 0 !important; }
#examples button { text-align: left; font-size: .82rem; line-height: 1.35; padding: 6px 10px; }
@media (prefers-reduced-motion: reduce) { .yan *, .yan { animation: none !important; } }
"""


def hue(expert: int, num_experts: int) -> int:
    """Degrees on the colour wheel, as far apart for all experts as there is room."""
    return round(265 + 360 * expert / num_experts) % 360


def show_position(position: Position, num_experts: int, is_new: bool) -> str:
    """A coloured token, or a dot for a position that adds nothing to the text."""
    style = f"--h:{hue(position.expert, num_experts)};--p:{100 * position.probability:.0f}%"
    facts = f"expert {position.expert + 1}, probability {position.probability:.2f}"
    text = position.text.strip()
    kind = ("yan-t" if text else "yan-b") + (" yan-new" if is_new and text else "")
    return f'<span class="{kind}" style="{style}" title="{facts}">{escape(text)}</span>'


def changed(draft: Sequence[Position], before: Sequence[Position] | None) -> list[bool]:
    """Which positions hold another piece of the text than in the draft before; none where there is none before."""
    if before is None:
        return [False] * len(draft)
    return [new.text.strip() != old.text.strip() for new, old in zip(draft, before, strict=True)]


def show_canvas(draft: Sequence[Position], before: Sequence[Position] | None, num_experts: int) -> str:
    """All positions in a row; what the step changed stands out for a moment. Tokens of one word stay together."""
    shown = ""
    for position, new in zip(draft, changed(draft, before), strict=True):
        gap = " " if position.text[:1].isspace() or not position.text else ""
        shown += gap + show_position(position, num_experts, new)
    return shown


def show_legend(coloring: str, num_experts: int) -> str:
    """What the colours mean."""
    dot = '<span><i class="yan-dot"></i>a blank position</span>'
    if coloring == "confidence":
        return f'<span>unsure<i class="yan-scale"></i>sure (the decoder’s probability of the token)</span>{dot}'
    keys = "".join(
        f'<span><i class="yan-k" style="--h:{hue(expert, num_experts)}"></i>expert {expert + 1}</span>'
        for expert in range(num_experts)
    )
    return keys + dot


def show_rows(writing: Writing, step: int) -> str:
    """The drafts up to a step as plain text, changes underlined; below the last what `restore()` gives."""
    rows = f'<div><b>noise</b><span class="noise">{escape(draft_text(writing.drafts[0]))}</span></div>'
    for number in range(1, step + 1):
        before = writing.drafts[number - 1] if number > 1 else None
        draft = writing.drafts[number]
        text = "".join(
            re.sub(r"\S.*", r"<u>\g<0></u>", escape(position.text)) if new else escape(position.text)
            for position, new in zip(draft, changed(draft, before), strict=True)
        )
        rows += f"<div><b>step {number}</b><span>{text.strip()}</span></div>"
    if writing.restored is not None and step == len(writing.drafts) - 1:
        rows += f'<div><b>after restore()</b><span class="restored">{escape(writing.restored)}</span></div>'
    return rows


def show_writing(writing: Writing, step: int, coloring: str) -> str:
    """
    The canvas after a step, the clock, the legend, and the drafts so far.

    Args:
        step: 0 for the noise.
        coloring: one of `COLORINGS`.

    Raises:
        ValueError: for another coloring, and for a step that there is not.
    """
    if coloring not in COLORINGS:
        raise ValueError(f"coloring={coloring!r} must be one of {COLORINGS}")
    steps = len(writing.drafts) - 1
    if not 0 <= step <= steps:
        raise ValueError(f"step={step} must be between 0 and {steps}")
    names = ["noise", *(f"step {number}" for number in range(1, steps + 1))]
    kinds = ["now" if number == step else "seen" if number < step else "" for number in range(steps + 1)]
    pills = "".join(f'<span class="yan-step {kind}">{name}</span>' for kind, name in zip(kinds, names, strict=True))
    clock = how = ""
    if step == steps:
        clock = f"{writing.answer_tokens} tokens in <b>{writing.milliseconds:.0f} ms</b>"
        how = f"median of {CALLS} calls, after two to warm up"
    before = writing.drafts[step - 1] if step else None
    canvas = show_canvas(writing.drafts[step], before, writing.num_experts)
    return (
        f'<div class="yan by-{coloring}"><div class="yan-panel">'
        f'<div class="yan-top">{pills}<span class="yan-clock" title="{how}">{clock}</span></div>'
        f'<div class="yan-canvas{"" if step else " yan-noise"}">{canvas}</div>'
        f'<div class="yan-legend">{show_legend(coloring, writing.num_experts)}</div></div>'
        f'<div class="yan-rows">{show_rows(writing, step)}</div></div>'
    )


def show_error(error: Exception) -> str:
    """What was wrong with the input, where the answer would have been."""
    return f'<div class="yan"><div class="yan-error" role="alert">{escape(str(error))}</div></div>'


def show_lane(lane: Lane, kind: str, slowdown: float) -> str:
    """
    A lane of a race, replayed by the browser: "yan" shows its text at its end, "peer" token by token, evenly over its
    time.
    """
    seconds = slowdown * lane.milliseconds / 1e3
    words = lane.text.split(" ") if kind == "peer" else [lane.text]
    text = " ".join(
        f'<span style="animation-delay:{seconds * number / len(words):.2f}s">{escape(word)}</span>'
        for number, word in enumerate(words, 1)
    )
    size = "" if lane.parameters is None else f"{lane.parameters / 1e6:,.1f} M parameters · "
    low, high = lane.quartiles
    return (
        f'<div class="yan-lane {kind}"><header><b>{escape(lane.name)}</b>'
        f'<span class="ms">{lane.milliseconds:.1f} ms</span></header>'
        f"<small>{size}{escape(lane.runtime)} · {lane.tokens} tokens · median of {lane.calls} calls, quartiles "
        f'{low:.1f} to {high:.1f} ms</small><div class="yan-track"><i style="animation-duration:{seconds:.2f}s;'
        f'width:{100 * seconds / RACE_SECONDS:.1f}%"></i></div><p>{text}</p></div>'
    )


def show_race(yan: Lane, peer: Lane, threads: int) -> str:
    """Both lanes, who was faster, and how it was measured."""
    fast, slow = sorted((yan, peer), key=lambda lane: lane.milliseconds)
    slowdown = 1e3 * RACE_SECONDS / slow.milliseconds
    ratio = slow.milliseconds / fast.milliseconds
    verdict = f"<b>{escape(fast.name)}</b> had its answer {ratio:.1f} times sooner than {escape(slow.name)}."
    how = (
        f"Both on {threads} thread{'s' * (threads != 1)}, batch size 1, warmed up, timed in turns, each as "
        f"long an answer as it finds right. The replay is {slowdown:.0f} times slower than the clocks; the words of "
        "the baseline are spread evenly over its time."
    )
    return (
        f'<div class="yan"><div class="yan-verdict">{verdict}</div>{show_lane(yan, "yan", slowdown)}'
        f"{show_lane(peer, 'peer', slowdown)}<small>{how}</small></div>"
    )
