"""The page of reasoning: how answers of several steps fall with the bits, beside single steps and perplexity."""

from reports.entropy_figures import ORIGIN
from reports.figures import Plot
from reports.page import number
from reports.reasoning import Chain, by_place, chain_verdict
from reports.reasoning_drawing import draw_chain, shown_steps
from reports.sections import Section, render_sections
from suite.store import ReasoningRow

PAGE = "reasoning.html"
LINK = "How long a chain of steps holds: problems with known answers"
_HEADER = ("model", "method", "recipe", "bits", "bpw", "steps", "problems", "answer %", "±", "all steps %", "±",
           "if independent %", "±", "step %", "±", "its value %", "step % by place", "nats", "perplexity",
           "answer to base %", "±")  # fmt: skip


def draw_reasoning(chains: list[Chain]) -> list[Section]:
    """A section for each unquantized model and seed."""
    return [
        Section(
            page="reasoning", name=str(i), model=chain.name, heading=f"Problems of several steps, {chain.name}",
            note=f"Base model hash {chain.every[0].any.base_sha256[:16]}, problems of seed {chain.rows[0].seed}.",
            plots=(chain_plot(chain),), verdicts={"chain": ((chain.name, chain_verdict(chain)),)},
        )
        for i, chain in enumerate(chains, 1)
    ]  # fmt: skip


def chain_plot(chain: Chain) -> Plot:
    """Answers, steps and perplexity against bits; models without quantized weights are in the numbers alone."""
    shown = ", ".join(map(str, shown_steps(chain)))
    caption = (
        f"Problems such as ((3+4)*7)%10 with {shown} steps, none of which training has shown. Left, the model writes "
        "all steps itself, the most likely character always, and its answer is the last value; guesses are right one "
        "time in ten. In the middle, single steps, all of their characters, given the true steps before. Right, "
        "perplexity of text. Bars are one standard error over problems, of perplexity that of the paired difference to "
        "the unquantized model, which is the dashed line. Were errors independent of each other, all steps would be "
        "right as often as the product of the shares over the places says."
    )
    words = [f"{s.label} at {s.bpw:.3g} bits: {_described(list(s.rows.values()))}." for s in chain.drawn]
    if chain.base is not None:
        words.insert(0, f"Unquantized: {_described(list(chain.base.rows.values()))}.")
    return Plot(key="chain", title="Answers of several steps against single steps", caption=caption,
                description=" ".join(words), header=(*_HEADER, *ORIGIN),
                rows=tuple(_row(row) for row in chain.rows), curves=(), figure=draw_chain(chain))  # fmt: skip


def _described(rows: list[ReasoningRow]) -> str:
    found = [f"{100 * row.answer:.3g}% of answers and {100 * row.step:.3g}% of steps at {row.steps}" for row in rows]
    return "; ".join(found)


def _row(row: ReasoningRow) -> tuple[str, ...]:
    change = None if row.answer_base is None else row.answer - row.answer_base
    return (
        row.model, row.method or "unquantized", row.recipe or "", "" if row.bits is None else f"{row.bits:g}",
        _number(row.bpw), str(row.steps), str(row.problems), _percent(row.answer), _percent(row.answer_se),
        _percent(row.right), _percent(row.right_se), _percent(row.independent), _percent(row.independent_se),
        _percent(row.step), _percent(row.step_se), _percent(row.value), by_place(row), number(row.nats),
        _number(row.ppl), _percent(change), _percent(row.answer_change_se), f"model {row.model_sha256[:12]}", row.code,
        row.env, row.command,
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else number(value, 5)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def render_reasoning(sections: list[Section], *, beside_report: bool) -> str:
    """The HTML of the page, the same bytes for the same sections; with a link to the report if there is one."""
    return render_sections(PAGE, sections, beside_report=beside_report)
