"""A profile as Markdown."""

from __future__ import annotations

from .result import Profile, Server


def markdown(profile: Profile) -> str:
    """The report: what is added and by whom, then the stages, then the threads."""
    plan = f"{profile.requests} requests, one client, one sample each, {_pause(profile.pause)}"
    rows = (profile.bare, profile.floor, profile.served, profile.probed, profile.echo)
    served, floor = profile.served.added["p50"], profile.floor.added["p50"]
    lines = [
        f"# Where a request's time goes: {profile.model}, {profile.task}",
        "",
        f"{plan}. {profile.environment.line()}.",
        "",
        "| | p50 ms | p90 | p99 | engine's own p50 | added p50 | added p90 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_server(server) for server in rows),
        "",
        f"The server adds {1e3 * served:.2f} ms at p50 to the engine's own time.",
        f"A server of the gRPC library, with nothing in it but the engine, adds {1e3 * floor:.2f} ms, "
        f"{_percent(floor / served)} of that; a call that does nothing takes {1e3 * profile.echo.total['p50']:.2f} ms.",
        f"The ratio to that floor is {profile.over_floor:.2f}.",
        "The engine's own time is that within each server: longer than in a bare loop, as others use the caches.",
        "",
        "![Stages](stages.png)",
        "",
        "| stage | p10 us | p50 us | p90 us | share | whose | until |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {s.name} | {1e6 * s.p10:.0f} | {1e6 * s.p50:.0f} | {1e6 * s.p90:.0f} | {_percent(s.share)} |"
            f" {'ours' if s.ours else ''} | {s.meaning} |"
            for s in profile.stages
        ),
        "",
        f"Ours: {_percent(sum(s.share for s in profile.stages if s.ours))} of the time, probes included.",
    ]
    if profile.threads:
        lines += ["", "| thread of the server | CPU us a request |", "| --- | --- |"]
        lines += [f"| {name} | {1e6 * seconds:.0f} |" for name, seconds in profile.threads.items()]
    return "\n".join(lines) + "\n"


def _server(server: Server) -> str:
    total, added = server.total, server.added
    times = [total["p50"], total["p90"], total["p99"], server.engine["p50"], added["p50"], added["p90"]]
    return f"| {server.name} | " + " | ".join(f"{1e3 * seconds:.2f}" for seconds in times) + " |"


def _pause(seconds: float) -> str:
    return f"{1e3 * seconds:g} ms before each" if seconds else "back to back"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
