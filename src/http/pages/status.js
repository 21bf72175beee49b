"use strict";
// Everything shown is put in as text, never as markup: names and labels are the callers'.
const $ = (id) => document.getElementById(id);
const el = (tag, cls, ...inside) => {
  const e = document.createElement(tag);
  if (cls) e.className = cls;
  for (const i of inside) if (i !== null && i !== undefined) e.append(i);
  return e;
};
const KEY = "mayfly.token";
let token = sessionStorage.getItem(KEY);
let session = 0;
let skew = 0;

class Refused extends Error {}

async function call(path, more) {
  const response = await fetch(path, { ...more, headers: { Authorization: "Bearer " + token, ...(more && more.headers) } });
  if (response.status === 401 || response.status === 403) throw new Refused((await response.json()).detail);
  if (!response.ok) throw new Error("HTTP " + response.status);
  const date = Date.parse(response.headers.get("date"));
  if (date) skew = date - Date.now();
  return response;
}
const json = async (path) => (await call(path)).json();

function ago(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min " + (s % 60) + " s";
  if (s < 172800) return Math.floor(s / 3600) + " h " + Math.floor((s % 3600) / 60) + " min";
  return Math.floor(s / 86400) + " d";
}
const now = () => Date.now() + skew;
const at = (time) => { const e = el("time", "", new Date(time).toLocaleString()); e.dateTime = time; return e; };

// Relative times go on counting between two answers.
const ticking = (time, text) => { const e = el("span", "tick"); e.dataset.at = time; e.tick = text; tick(e); return e; };
function tick(e) { e.textContent = e.tick(Date.parse(e.dataset.at) - now()); }
setInterval(() => { if (!document.hidden) document.querySelectorAll(".tick").forEach(tick); }, 1000);
const since = (time) => ticking(time, (ms) => ago(-ms));
const until = (time) => ticking(time, (ms) => (ms < 0 ? "overdue by " + ago(-ms) : "in " + ago(ms)));

const TONE = { queued: "idle", cloning: "warn", booting: "warn", configuring: "warn", running: "good", draining: "work", kept: "bad", stopping: "idle", deleting: "idle", deleted: "idle" };
const RESULT = { completed: "good", cancelled: "idle", failed: "bad", lost: "bad" };
const badge = (text, tone) => el("span", "state " + (tone || "idle"), text);

function table(heads, rows, empty) {
  if (!rows.length) return el("p", "quiet", empty);
  const body = el("tbody");
  for (const row of rows) body.append(el("tr", "", ...row.map((cell) => el("td", "", cell))));
  return el("table", "", el("thead", "", el("tr", "", ...heads.map((h) => el("th", "", h)))), body);
}

function showHost(host) {
  const cards = [];
  for (const os of ["macos", "linux"]) {
    const s = host.slots[os];
    if (!s.total && !s.ours && !s.foreign) continue;
    const bar = el("div", "slots");
    for (let n = 0; n < Math.min(Math.max(s.total, s.ours + s.foreign), 64); n++)
      bar.append(el("span", "slot" + (n < s.ours ? " ours" : n < s.ours + s.foreign ? " foreign" : "")));
    const foreign = s.foreign ? ", " + s.foreign + " taken by others" : "";
    cards.push(el("div", "card", el("span", "quiet small", (os === "macos" ? "macOS" : "Linux") + " slots"), el("b", "", s.free + " of " + s.total + " free"), el("span", "quiet small", s.ours + " ours" + foreign), bar));
  }
  const c = host.capacity;
  const used = (what) => host.leased[what] + host.foreign[what];
  cards.push(el("div", "card", el("span", "quiet small", "Cores given to guests"), el("b", "", used("cpus") + " of " + c.cpus)));
  cards.push(el("div", "card", el("span", "quiet small", "Memory given to guests"), el("b", "", (used("memory_mib") / 1024).toFixed(1) + " of " + (c.memory_mib / 1024).toFixed(1) + " GiB")));
  for (const f of host.faults) {
    const kind = f.os === "macos" ? "macOS" : "Linux";
    const what = f.os ? f.admits + " of " + f.slots + " " + kind + " slots can be used" : "vms of " + f.driver + " cannot be " + (f.step === "cloning" ? "cloned" : "started");
    const code = el("a", "mono", f.code);
    code.href = "/problems/" + encodeURIComponent(f.code);
    cards.push(el("div", "card wide", el("b", "warn", what), el("div", "small", "for ", since(f.since), " · ", code, ": " + f.detail), el("div", "quiet small", f.remedy)));
  }
  if (!host.observed) cards.push(el("div", "card warn", "The drivers are still being probed; nothing starts before."));
  $("host").replaceChildren(...cards);
  $("drivers").replaceChildren(table(["Driver", "", "Runs on", "Remark"], host.drivers.map((d) => [
    d.name,
    badge(d.usable ? "usable" : "not usable", d.usable ? "good" : "bad"),
    [d.version, d.arch, d.accelerator].filter(Boolean).join(" · ") || "–",
    d.fault ? el("span", "", el("code", "", d.fault.code), " " + d.fault.detail, el("br"), el("span", "quiet small", d.remedy || "")) : d.note || "",
  ]), "No driver is configured."));
}

const WHY = { template: "its template is not here yet", slot: "all slots that it fits in are taken", host: "the host cannot run it now", backoff: "an attempt failed; the next one waits a moment" };

function why(queue) {
  const reason = WHY[queue.reason] || queue.reason;
  const pull = queue.pull;
  return pull && pull.percent !== null ? reason + " (" + pull.percent + " %)" : reason;
}

function name(vm) {
  const labels = Object.entries(vm.labels).map(([k, v]) => k + "=" + v).join("  ");
  const pool = vm.pool ? el("div", "quiet small", "pool " + vm.pool) : null;
  return el("div", "", el("strong", "", vm.name), el("div", "quiet small mono", vm.id), pool, labels ? el("div", "quiet small", labels) : null);
}

function timeline(vm) {
  const steps = vm.timeline;
  const end = vm.deleted_at ? Date.parse(vm.deleted_at) : now();
  const line = el("div", "line");
  const words = [];
  steps.forEach((step, n) => {
    const took = Math.max(0, (n + 1 < steps.length ? Date.parse(steps[n + 1].at) : end) - Date.parse(step.at));
    if (step.state !== "deleted") {
      const part = el("i", "s-" + step.state);
      // Square root: a boot of seconds stays visible beside a job of hours. Set by script, which the page's policy allows.
      part.style.flexGrow = String(Math.sqrt(took + 1));
      line.append(part);
      words.push(step.state + " " + ago(took));
    }
  });
  line.title = words.join("\n");
  line.setAttribute("role", "img");
  line.setAttribute("aria-label", words.join(", "));
  return line;
}

function remark(vm) {
  const lines = [];
  if (vm.outcome) {
    const o = vm.outcome;
    lines.push(el("div", "", badge(o.result, RESULT[o.result]), vm.end_signal ? " by " + vm.end_signal.replaceAll("_", " ") : ""));
    if (o.code) { const a = el("a", "mono", o.code); a.href = "/problems/" + encodeURIComponent(o.code); lines.push(el("div", "small", a, o.detail ? " " + o.detail : "")); }
  } else if (vm.deadline) lines.push(el("div", "small", vm.deadline.budget + " budget ends ", until(vm.deadline.at)));
  for (const job of vm.jobs) {
    const link = el("a", "", job.repository + ": " + job.name);
    // A link may lead anywhere but into this page. A server of one's own may be on this machine, without TLS.
    if (/^https?:\/\//.test(job.url || "")) link.href = job.url;
    const source = job.source === "github" ? "" : " of " + job.source;
    lines.push(el("div", "small", link, source + " " + (job.conclusion || job.status.replaceAll("_", " "))));
  }
  if (vm.paused_since) lines.push(el("div", "small warn", "The CI server is away for ", since(vm.paused_since)));
  if (vm.job) lines.push(el("div", "small", "job exit code " + vm.job.exit_code));
  if (vm.attempt > 1) lines.push(el("div", "small warn", "attempt " + vm.attempt));
  if (vm.last_fault && !(vm.outcome && vm.outcome.code === vm.last_fault.code)) lines.push(el("div", "small warn", vm.last_fault.code + ": " + vm.last_fault.detail));
  return el("div", "", ...lines);
}

function showVms(live, more, deleted) {
  const queued = live.filter((vm) => vm.queue).sort((a, b) => a.queue.position - b.queue.position);
  const others = live.filter((vm) => !vm.queue);
  $("queued").textContent = queued.length ? "(" + queued.length + (more ? "+" : "") + ")" : "";
  $("count").textContent = others.length ? "(" + others.length + (more ? "+" : "") + ")" : "";
  $("queue").replaceChildren(table(["#", "Vm", "Template", "Why it waits", "Waits for", "Gives up"], queued.map((vm) => [
    String(vm.queue.position), name(vm), vm.template, why(vm.queue), since(vm.created_at), until(vm.queue.deadline),
  ]), "Nothing waits."));
  $("vms").replaceChildren(table(["Vm", "State", "Runner", "Template", "Life so far", ""], others.map((vm) => [
    name(vm),
    el("div", "", badge(vm.state, TONE[vm.state]), el("div", "quiet small", "for ", since(vm.timeline[vm.timeline.length - 1].at))),
    vm.runner.kind + " · " + vm.runner.status, vm.template,
    el("div", "", since(vm.created_at), timeline(vm)), remark(vm),
  ]), "No vm has a slot."));
  $("deleted").replaceChildren(table(["Vm", "Outcome", "Template", "Life", "Gone since"], deleted.map((vm) => [
    name(vm), remark(vm), vm.template, el("div", "", ago(Date.parse(vm.deleted_at) - Date.parse(vm.created_at)), timeline(vm)), at(vm.deleted_at),
  ]), "None yet."));
}

function showPools(pools) {
  $("pooled").hidden = !pools.length;
  $("pools").replaceChildren(table(["Pool", "Takes jobs of", "Labels", "Template", "Vms", "Jobs waiting", "Last error"], pools.map((pool) => {
    const error = pool.last_error;
    return [
      el("div", "", el("strong", "", pool.name), pool.enabled ? null : el("div", "small warn", "disabled")),
      el("div", "", pool.scope, el("div", "quiet small", pool.job_source === "github" ? "" : "at " + pool.job_source),
        el("div", "quiet small", pool.repositories.join("  "))),
      pool.labels.join("  "), pool.template,
      pool.vms.live + " of " + pool.max_vms + (pool.vms.queued ? ", " + pool.vms.queued + " queued" : ""), String(pool.jobs_waiting),
      error ? el("div", "small", el("span", "mono", error.code), " " + error.detail, el("div", "quiet", since(error.at), " ago")) : "",
    ];
  }), ""));
}

function live(text, cls) { const e = $("live"); e.textContent = text; e.className = "live quiet small " + cls; }

let refreshing = null;
let again = false;
// However many events come, one look is under way at a time and one more follows.
function refresh(of) {
  if (refreshing) { again = true; return refreshing; }
  refreshing = (async () => {
    try {
      do {
        again = false;
        const [host, pools, page, deleted] = await Promise.all([json("/host"), json("/pools"), json("/vms?limit=200"), json("/vms?state=deleted&limit=10")]);
        if (of !== session) return;
        showHost(host);
        showPools(pools.items);
        showVms(page.items, page.next_cursor, deleted.items);
        if (again) await new Promise((go) => setTimeout(go, 250));
      } while (again && of === session);
    } finally { refreshing = null; }
  })();
  return refreshing;
}

async function follow(of) {
  let last = null;
  while (of === session) {
    try {
      const response = await call("/events", last === null ? {} : { headers: { "Last-Event-ID": last } });
      // What happened before the stream began is in the first look.
      await refresh(of);
      live("live", "on");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done || of !== session) { reader.cancel(); break; }
        rest += value;
        const blocks = rest.split("\n\n");
        rest = blocks.pop();
        let news = false;
        for (const block of blocks) {
          const id = /^id: (\d+)$/m.exec(block);
          if (id) { last = id[1]; news = true; }
        }
        if (news) refresh(of).catch(() => {});
      }
    } catch (error) {
      if (of !== session) return;
      if (error instanceof Refused) return leave(error.message);
    }
    if (of !== session) return;
    live("connection lost, trying again", "off");
    await new Promise((go) => setTimeout(go, 2000));
  }
}

function enter() {
  session++;
  $("ask").hidden = true;
  $("shown").hidden = false;
  $("leave").hidden = false;
  $("refused").textContent = "";
  live("connecting", "");
  follow(session);
}

function leave(why) {
  session++;
  token = null;
  sessionStorage.removeItem(KEY);
  for (const id of ["host", "drivers", "pools", "queue", "vms", "deleted"]) $(id).replaceChildren();
  $("ask").hidden = false;
  $("shown").hidden = true;
  $("leave").hidden = true;
  $("refused").textContent = why || "";
  live("not connected", "");
}

$("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  // What is no header value was no token of ours.
  if (!/^[\x21-\x7e]+$/.test(token)) return leave("this is not a token");
  sessionStorage.setItem(KEY, token);
  enter();
});
$("leave").addEventListener("click", () => leave());
if (token) enter();
