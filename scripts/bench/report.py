"""Writes the stored figures as Markdown: docs/speed.md."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]
HEAD = ("workload", "contender", "x learn2learn", "tasks/s", "ms a meta-step", "minimum", "quartiles", "peak MB",
        "of the limit", "first call s", "gradient error")  # fmt: skip


def markdown(stored: Row, accuracy: Row | None, scoring: Row | None) -> str:
    about = stored["machine"]
    name = about.get("gpu") or f"{about['cpu']}, {about['cores']} cores, {about['vector']}"
    lines = [
        "# Speed",
        "",
        f"Written by `{stored['command']}` on {stored['date']}; the figures are in the JSON file in the same folder.",
        "",
        f"- Machine: {name}, {about['memory_gb']} GB, {about['system']}; torch {about['torch']}, Python "
        f"{about['python']}, {about['threads']} threads, allocator: {about['allocator']}",
        *([f"- TF32 in convolutions: {about['tf32']}"] if "tf32" in about else []),
        f"- Limit: {stored['limit_gflops']:.0f} GFLOP/s, the fastest fp32 convolution, measured at the start. `of the "
        "limit` is the GFLOP/s of a contender by this limit, where the GFLOP are the convolutions and matrix products "
        "of the plain autograd loop.",
        f"- Contenders run in one process, one after another in each of {stored['rounds']} rounds; figures are "
        "medians. `x learn2learn` is the median over rounds of learn2learn's time by the contender's.",
        "- `gradient error`: relative error of the float64 meta-gradient against the plain autograd loop. A contender "
        "above 1e-10 is wrong and is not timed.",
        "- `peak MB`: measured in a separate process, without the memory of the imports, compiled code from the cache.",
        "- All contenders have the same network, weights and random inputs. The other libraries run a plain torch "
        "module with torch.nn.BatchNorm2d, without running statistics and without the bias that batch norm cancels.",
    ]
    if stored["quick"]:
        lines += ["- **Made with --quick: tiny networks; the figures mean nothing.**"]
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
    if accuracy:
        lines += ["", *accuracy_section(accuracy)]
    if scoring:
        lines += ["", *scoring_section(scoring)]
    return "\n".join(lines) + "\n"


def ratios(rows: list[Row]) -> list[str]:
    names = list(dict.fromkeys(c["name"] for row in rows for c in row["contenders"]))
    lines = [table_row(["workload", *names]), table_row(["---"] * (len(names) + 1))]
    for row in rows:
        found = {c["name"]: c for c in row["contenders"]}
        lines.append(table_row([f"**{row['workload']}** {row['title']}", *(_ratio(found.get(name)) for name in names)]))
    return lines


def _ratio(contender: Row | None) -> str:
    if contender is None or contender["status"] == "unavailable":
        return ""
    return f"{contender['ratio']:.2f}" if "ratio" in contender else contender["status"]


def table(rows: list[Row]) -> list[str]:
    lines = [table_row(HEAD), table_row(["---"] * len(HEAD))]
    for row in rows:
        lines += [table_row([row["workload"], c["name"] + auto_choices(c), *figures(c)]) for c in row["contenders"]]
        lines += [
            table_row([row["workload"], c["name"], note]) for c in row["contenders"] for note in c.get("notes", ())
        ]
    return lines


def auto_choices(contender: Row) -> str:
    """The choices of `auto`, in brackets."""
    if "chosen" not in contender:
        return ""
    choices = [f"{key} {value}" for key, value in contender["chosen"].items()]
    return f" ({', '.join(choices)})"


def figures(contender: Row) -> list[str]:
    if contender["status"] == "unavailable":
        return [f"unavailable: {contender['reason']}".replace("|", "/"), *[""] * (len(HEAD) - 3)]
    error = f"{contender['gate']:.0e}"
    if contender["status"] == "wrong":
        return ["**wrong**, not timed", *[""] * (len(HEAD) - 4), error]
    low, high = (1000 * value for value in contender["quartiles_s"])
    memory_mb = contender.get("memory_mb")
    return [
        f"{contender['ratio']:.2f}" if "ratio" in contender else "",
        f"{contender['tasks_per_s']:,.0f}",
        f"{1000 * contender['median_s']:.1f}",
        f"{1000 * contender['min_s']:.1f}",
        f"{low:.1f} to {high:.1f}",
        "" if memory_mb is None else f"{memory_mb:,.0f}",
        f"{100 * contender['limit_share']:.1f} %",
        f"{contender['first_s']:.1f}",
        error,
    ]


def accuracy_section(found: Row) -> list[str]:
    percent = f"{100 * found['target']:.0f} %"
    lines = [
        f"## Time to {percent} validation accuracy",
        "",
        f"Omniglot, `{' '.join(found['overrides'])}`; the same episodes, weights and optimizer; {found['how']}. The "
        f"time of validation ({found['episodes']} episodes every {found['every']} steps) is not counted; the time to "
        f"choose how to execute and to compile is. Command: `{found['command']}`.",
        "",
        table_row(["contender", f"seconds to {percent}", "steps", "accuracy reached", "tasks/s"]),
        table_row(["---"] * 5),
    ]
    for name, run in found["runs"].items():
        last = run["curve"][-1]
        seconds = f"{last['seconds']:.1f}" if run["reached"] else f"not within {last['seconds']:.0f}"
        pace = f"{last['step'] * found['tasks'] / last['seconds']:.0f}"
        lines.append(table_row([name, seconds, str(last["step"]), f"{100 * last['accuracy']:.1f} %", pace]))
    return lines


def scoring_section(found: Row) -> list[str]:
    lines = [
        f"## {found['episodes']} test episodes",
        "",
        f"Omniglot, `{' '.join(found['overrides'])}`; the same episodes and weights, 50 episodes at a time, one "
        "contender after another; drawing them is not timed. learn2learn's loop runs first-order, since scoring needs "
        f"no second order. `output error`: relative, in float64, against learn2learn. Command: `{found['command']}`.",
        "",
        table_row(["contender", "seconds", "x learn2learn", "output error"]),
        table_row(["---"] * 4),
    ]
    for row in found["rows"]:
        lines.append(table_row([row["name"], f"{row['total_s']:.2f}", f"{row['ratio']:.2f}", f"{row['error']:.0e}"]))
    return lines


def table_row(values: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(values)} |"
