"""Compares what was measured with the documented limits. docs/measurements.md lists the same limits."""

import os
import re
import statistics

import parameters as soak
from measure import percentile
from parameters import MIB

# Of the service, besides bodies: a thousand connections, pulls, and what the allocator keeps for some seconds. Growth is what
# shows a leak.
OTHER_MEMORY = 192 * MIB
MEMORY_GROWTH = 24 * MIB
# The write-ahead log has up to 16 MiB before it is used again. A vm's record and events take some KiB.
DATABASE, DATABASE_PER_VM = 24 * MIB, 16 << 10
# What a guest writes to its console in the fifth of a second between two looks at the file.
CONSOLE_EXCESS = 4 * MIB
HOOK = re.compile(r"SOAK-HOOK (\d+) (\d+) ([0-9.]+)")
HOOK_SECONDS = 5
# One connection of the guest API has two descriptors in its gateway, and there are some hundred for the host.
GATEWAY_DESCRIPTORS = 2 * 512 + 128


def judge(run, wall):
    parameters, sampler, probe = run.parameters, run.sampler, run.probe
    most = sampler.most
    hooks = [(int(exit), status, float(seconds)) for guest in run.host.all if guest.vm == run.calm["id"]
             for exit, status, seconds in HOOK.findall(guest.console_text)]
    good_hooks = [seconds for exit, status, seconds in hooks if exit == 0 and status == "202"]
    alone = statistics.median(run.alone)
    ratios = [seconds / alone for seconds in run.beside]
    cores = os.cpu_count() or 1
    debug = parameters.profile == "debug"
    told = run.told or {"done": {}, "ends": {}, "served": {}, "trapped": []}
    rows = []

    def row(what, value, bound, unit, holds=None, asserted=True):
        rows.append({"what": what, "value": value, "bound": bound, "unit": unit, "asserted": asserted and bound is not None,
                     "holds": bound is None or (value is not None and value <= bound) if holds is None else holds})

    row("/healthz, median", rounded(percentile(probe.milliseconds, 0.5)), None, "ms")
    row("/healthz, p99", rounded(percentile(probe.milliseconds, 0.99)), 2000 if debug else 100, "ms")
    row("/healthz, longest", rounded(max(probe.milliseconds, default=None)), None, "ms")
    row("/healthz, failed", len(probe.failed), 0, "of %d" % len(probe.milliseconds))
    row("hook call, median", rounded(percentile(good_hooks, 0.5), 3), None, "s")
    row("hook call, longest", rounded(max(good_hooks, default=None), 3), HOOK_SECONDS, "s")
    row("hook call, failed", len(hooks) - len(good_hooks), 0, "of %d" % len(hooks))
    row("job alone, median", rounded(alone, 2), None, "s")
    row("job beside, median", rounded(statistics.median(run.beside), 2) if run.beside else None, None, "s")
    # Emulated guests and their attackers need more cores than a small machine has; the service divides none.
    crowd = max(1, (soak.SLOTS + 2) / cores)
    row("job beside / alone, median", rounded(percentile(ratios, 0.5), 2), rounded(2 * crowd, 2), "x")
    row("job beside / alone, longest", rounded(max(ratios, default=None), 2), rounded(2 * crowd, 2), "x", asserted=not debug)
    row("service, memory before", mib(run.quiet_memory), None, "MiB")
    row("service, memory", mib(most["service memory"]), mib(run.quiet_memory + soak.BODY_MEMORY_BYTES + OTHER_MEMORY), "MiB")
    row("service, memory, growth in the second half", mib(growth(sampler.service_memory)), mib(MEMORY_GROWTH), "MiB")
    row("service, memory after", mib(run.settled_memory), mib(run.quiet_memory + soak.BODY_MEMORY_BYTES + OTHER_MEMORY), "MiB")
    row("service, descriptors", most["service descriptors"], soak.MAX_CONNECTIONS + 512, "")
    row("gateway, memory", mib(most["gateway memory"]), 128, "MiB")
    row("gateway, descriptors", most["gateway descriptors"], GATEWAY_DESCRIPTORS, "")
    row("QEMU, memory", mib(most["qemu memory"]), 192 + 256, "MiB")
    row("QEMU, descriptors", most["qemu descriptors"], 128, "")
    row("QEMU, processes", most["qemu processes"], soak.SLOTS + 1, "")
    row("gateways", most["gateway processes"], soak.SLOTS + 1, "")
    row("all processes", most["processes"], 1 + 3 * (soak.SLOTS + 1), "")
    row("guests at once", run.host.peak, soak.SLOTS, "")
    row("console.log", mib(most["console.log"]), mib(soak.CONSOLE_BYTES + CONSOLE_EXCESS), "MiB")
    row("watch.log", mib(most["watch.log"]), 3, "MiB")
    row("qemu.log, gateway.log", mib(max(most["qemu.log"], most["gateway.log"])), 2, "MiB")
    row("one log of a guest", mib(most["one log of a guest"]), 1.25, "MiB")
    created = told["done"].get("vms of hostile images", 0)
    row("database", mib(most["database"]), mib(DATABASE + DATABASE_PER_VM * (created + len(run.beside))), "MiB")
    if run.mounts.possible:
        row("free disk, least", mib(sampler.least_free), mib(soak.MIN_FREE_BYTES), "MiB", sampler.least_free >= soak.MIN_FREE_BYTES)
    # On standard error, where its reader has to limit it.
    row("the service's own log", mib(run.service.log_size()), None, "MiB")
    row("metric series", max(sampler.series, default=None), 2000, "")
    row("metric series, growth in the second half", growth(sampler.series), 100, "")
    row("processor time of other programs", rounded(100 * sampler.foreign_share(), 0), None, "%")

    violations = [f"{r['what']}: {r['value']} {r['unit']}, the limit is {r['bound']}" for r in rows if r["asserted"] and not r["holds"]]
    violations += run.failures + run.left + [f"more than one guest: {v}" for v in run.host.violations]
    violations += [f"a request came to a server that nobody may be sent to: {visit}" for visit in told["trapped"][:10]]
    violations += attacked_too_little(run, told, most, hooks)
    return {
        "name": parameters.name, "binary": parameters.profile, "seed": parameters.seed, "seconds": parameters.seconds,
        "wall_seconds": round(wall, 1), "cores": cores, "network": run.network, "rows": rows, "alone_seconds": rounded_all(run.alone),
        "beside_seconds": rounded_all(run.beside), "attack": told["done"], "ends_of_hostile_images": told["ends"],
        "registry": told["served"], "trapped": len(told["trapped"]), "samples": sampler.samples,
        "service_memory_mib": [mib(memory) for memory in sampler.service_memory],
        "metrics_not_answered": len(sampler.errors), "violations": violations,
    }


def attacked_too_little(run, told, most, hooks):
    """A soak without an attack shows nothing."""
    found = []
    if run.told is None:
        found.append(f"the attack ended early: {run.attack_log[-2000:]}")
    expected = ["idle connections", "webhook bodies, unfinished", "webhook bodies, oversized", "invented methods", "unfinished bodies of a token",
                "long polls", "streams", "refused creates, 403", "vms of hostile images"]
    if run.network == "internet":
        expected.append("name lookups that left the gateway")
    found += [f"the attack had none of these: {what}" for what in expected if run.told and not told["done"].get(what)]
    found += [f"the hostile registry was not asked for {what}" for what in ("realm manifests", "redirect blobs", "bomb blobs")
              if run.told and not told["served"].get(what)]
    for what, least in (("console.log", soak.CONSOLE_BYTES // 2), ("watch.log", 12 << 10), ("one log of a guest", MIB // 2)):
        if most[what] < least:
            found.append(f"the hostile guest wrote little: {what} has {most[what]} bytes")
    if most["gateway descriptors"] < 40:
        found.append(f"the hostile guest opened few connections: its gateway has {most['gateway descriptors']} descriptors")
    for kind, codes in told["ends"].items():
        if strange := set(codes) - {"image.refused", "image.unavailable", "template.invalid", "queue.timeout", "host.full", "auth.live_vms_exceeded"}:
            found.append(f"a vm of a hostile image ({kind}) ended with {sorted(map(str, strange))}")
    if len(hooks) < run.parameters.seconds / 10:
        found.append(f"the calm guest made only {len(hooks)} calls")
    return found


def growth(series):
    """The median of the last quarter, above that of the quarter before it."""
    quarter = len(series) // 4
    if quarter == 0:
        return None
    return max(0, statistics.median(series[-quarter:]) - statistics.median(series[-2 * quarter:-quarter]))


def rounded(value, digits=1):
    return None if value is None else round(value, digits)


def rounded_all(values):
    return [round(value, 2) for value in values]


def mib(size):
    return None if size is None else round(size / MIB, 2)


def table(result):
    print(f"\n{result['name']}: seed {result['seed']}, {result['seconds']} s of attack, {result['binary']} binary, {result['cores']} cores, "
          f"{soak.SLOTS} slots, {len(result['beside_seconds'])} jobs beside it")
    print(f"  {'':<42}{'measured':>10}{'limit':>10}  unit")
    for row in result["rows"]:
        shown = lambda value: "-" if value is None else f"{value:g}"
        mark = "" if row["holds"] else ("  VIOLATED" if row["asserted"] else "  above (not asserted)")
        print(f"  {row['what']:<42}{shown(row['value']):>10}{shown(row['bound']):>10}  {row['unit']}{mark}")
    print("\n  attacks")
    for what, count in sorted(result["attack"].items()):
        print(f"  {what:<42}{count:>10}")
    print("\n  ends of vms of hostile images")
    for kind, codes in sorted(result["ends_of_hostile_images"].items()):
        print(f"  {kind:<14}" + ", ".join(f"{code}: {count}" for code, count in sorted(codes.items(), key=str)))
    print(f"\n  violations: {len(result['violations']) or 'none'}")
    for violation in result["violations"][:40]:
        print(f"    {violation}")
