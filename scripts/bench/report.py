"""The stored figures as Markdown."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
HEAD = ("workload", "contender", "x learn2learn", "tasks/s", "ms a meta-step", "least", "quartiles", "peak MB",
        "of the limit", "first call s", "gate")  # fmt: skip


def markdown(stored: Row, reached: Row | None, scored: Row | None) -> str:
    about = stored["machine"]
    name = about.get("gpu") or f"{about['cpu']}, {about['cores']} cores, {about['vector']}"
    lines = [
        "# Speed",
        "",
        f"Written by `{stored['command']}` on {stored['date']}; the figures are in the JSON file beside this one.",
        "",
        f"- Machine: {name}, {about['memory_gb']} GB, {about['system']}; torch {about['torch']}, Python "
        f"{about['python']}, {about['threads']} threads, allocator: {about['allocator']}",
        *([f"- TF32 in convolutions: {about['tf32']}"] if "tf32" in about else []),
        f"- Limit: {stored['limit_gflops']:.0f} GFLOP/s, the best fp32 convolution measured at the start. `of the "
        "limit` holds against it the convolutions and matrix products that the plain autograd loop counts for a task.",
        f"- In one process, in turn, {stored['rounds']} rounds; medians. The ratio is the median over rounds of "
        "learn2learn's time by the contender's.",
        "- Gate: relative error of the float64 meta-gradient against the plain autograd loop; above 1e-10 nothing is "
        "timed. `peak MB` is above what the imports cost, in a process of its own, with what is compiled in the cache.",
        "- All have the same network, weights and random inputs. The peers run it as a plain torch module with "
        "torch's own batch norm, without running statistics and without the bias that batch norm takes away.",
    ]
    if stored["quick"]:
        lines += ["- **Tried with --quick: tiny networks, the figures mean nothing.**"]
    lines += [
        "",
        "## Against learn2learn",
        "",
        *ratios(stored["rows"]),
        "",
        "## All figures",
        "",
        *table(stored["rows"]),
    ]
    if reached:
        lines += ["", *accuracy(reached)]
    if scored:
        lines += ["", *scores(scored)]
    return "\n".join(lines) + "\n"


def ratios(rows: list[Row]) -> list[str]:
    names = list(dict.fromkeys(c["name"] for row in rows for c in row["contenders"]))
    lines = [cells(["workload", *names]), cells(["---"] * (len(names) + 1))]
    for row in rows:
        found = {c["name"]: c for c in row["contenders"]}
        lines.append(cells([f"**{row['workload']}** {row['title']}", *(_ratio(found.get(name)) for name in names)]))
    return lines


def _ratio(contender: Row | None) -> str:
    if contender is None or contender["status"] == "unavailable":
        return ""
    return f"{contender['ratio']:.2f}" if "ratio" in contender else contender["status"]


def table(rows: list[Row]) -> list[str]:
    lines = [cells(HEAD), cells(["---"] * len(HEAD))]
    for row in rows:
        lines += [cells([row["workload"], c["name"] + chosen(c), *figures(c)]) for c in row["contenders"]]
        lines += [cells([row["workload"], c["name"], note]) for c in row["contenders"] for note in c.get("notes", ())]
    return lines


def chosen(contender: Row) -> str:
    """What `auto` decided."""
    if "chosen" not in contender:
        return ""
    said = [f"{key} {value}" for key, value in contender["chosen"].items()]
    return f" ({', '.join(said)})"


def figures(contender: Row) -> list[str]:
    if contender["status"] == "unavailable":
        return [f"unavailable: {contender['reason']}".replace("|", "/"), *[""] * (len(HEAD) - 3)]
    gate = f"{contender['gate']:.0e}"
    if contender["status"] == "wrong":
        return ["**wrong**, not timed", *[""] * (len(HEAD) - 4), gate]
    low, high = (1000 * value for value in contender["quartiles_s"])
    heavy = contender.get("memory_mb")
    return [
        f"{contender['ratio']:.2f}" if "ratio" in contender else "",
        f"{contender['tasks_per_s']:,.0f}",
        f"{1000 * contender['median_s']:.1f}",
        f"{1000 * contender['min_s']:.1f}",
        f"{low:.1f} to {high:.1f}",
        "" if heavy is None else f"{heavy:,.0f}",
        f"{100 * contender['limit_share']:.1f} %",
        f"{contender['first_s']:.1f}",
        gate,
    ]


def accuracy(found: Row) -> list[str]:
    percent = f"{100 * found['target']:.0f} %"
    lines = [
        f"## Time to {percent} validation accuracy",
        "",
        f"Omniglot, `{' '.join(found['words'])}`; the same episodes, weights and optimizer; {found['how']}. Validation "
        f"({found['episodes']} episodes every {found['every']} steps) is not counted, deciding how to execute and "
        f"compiling are. Command: `{found['command']}`.",
        "",
        cells(["contender", f"seconds to {percent}", "steps", "accuracy then", "tasks/s"]),
        cells(["---"] * 5),
    ]
    for name, run in found["runs"].items():
        last = run["curve"][-1]
        seconds = f"{last['seconds']:.1f}" if run["reached"] else f"not within {last['seconds']:.0f}"
        pace = f"{last['step'] * found['tasks'] / last['seconds']:.0f}"
        lines.append(cells([name, seconds, str(last["step"]), f"{100 * last['accuracy']:.1f} %", pace]))
    return lines


def scores(found: Row) -> list[str]:
    lines = [
        f"## {found['episodes']} test episodes",
        "",
        f"Omniglot, `{' '.join(found['words'])}`; the same episodes and weights, in turn by 50, drawn beforehand; "
        "learn2learn's loop without second order, which scoring does not need. `gate`: relative error of outputs "
        f"in float64 against learn2learn's. Command: `{found['command']}`.",
        "",
        cells(["contender", "seconds", "x learn2learn", "gate"]),
        cells(["---"] * 4),
    ]
    for row in found["rows"]:
        lines.append(cells([row["name"], f"{row['total_s']:.2f}", f"{row['ratio']:.2f}", f"{row['error']:.0e}"]))
    return lines


def cells(values: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(values)} |"
