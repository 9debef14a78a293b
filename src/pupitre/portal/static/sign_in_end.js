// Warns before the sign-in ends, on every page and in every tab, and extends it. Without scripts the button is a form.
//
// Tabs tell each other: an extended sign-in is every tab's, and when one was signed out each looks for itself.

const SAY_AT = [Infinity, 60, 20]; // seconds left
const LOOK_AGAIN = 5_000; // ms, while the server does not answer

const box = document.getElementById("sign-in-end");
const warning = document.getElementById("sign-in-warning");
const form = document.getElementById("sign-in-extend");
const left = document.getElementById("sign-in-left");
const next = document.getElementById("sign-in-next");
const said = document.getElementById("sign-in-said");
const channel = new BroadcastChannel("pupitre-sign-in");
const console_ = box.closest(".console-page");

let ends = Number(box.dataset.ends);
let latest = Number(box.dataset.latest);
let ahead = Number(box.dataset.clock) - Date.now(); // the server's clock and ours differ
const warn = Number(box.dataset.warn);
let confirmed = false; // whether the server was asked since the warning is due
let lookedAt = -Infinity;
let saidAt; // at how many seconds left it was last said

const remaining = () => ends - (Date.now() + ahead);
const minutes = (seconds) => `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
const words = (seconds) => (seconds >= 120 ? `${Math.round(seconds / 60)} minutes` : `${seconds} seconds`);

/** What the server says of this sign-in. */
function follow(session) {
  ends = Date.parse(session.expires);
  latest = Date.parse(session.latest);
  ahead = Date.parse(session.now) - Date.now();
  tick();
}

/** Asks the server; when it knows no such sign-in, the page for signing in says why and leads back here. */
async function look() {
  if (performance.now() - lookedAt < LOOK_AGAIN) return;
  lookedAt = performance.now();
  const answer = await fetch("/api/v1/sessions/current").catch(() => null);
  if (answer?.ok) {
    confirmed = true;
    follow(await answer.json());
  } else if (answer?.status === 401) {
    location.assign(`/signin?next=${encodeURIComponent(box.dataset.here)}`);
  }
}

function show(seconds) {
  warning.hidden = false;
  form.hidden = ends >= latest;
  if (left.textContent !== minutes(seconds)) left.textContent = minutes(seconds);
  next.textContent = form.hidden
    ? "It cannot be extended any more: save your work, then sign in again."
    : console_
      ? "Ctrl+Alt+Shift leads to the button."
      : "Your desktops go on running.";
  const mark = SAY_AT.findLast((at) => seconds <= at);
  if (saidAt === mark || seconds === 0) return;
  saidAt = mark;
  said.textContent = `Your sign-in ends in ${words(seconds)}. ${next.textContent}`;
}

function hide() {
  const focused = warning.contains(document.activeElement);
  warning.hidden = true;
  confirmed = false;
  saidAt = undefined;
  if (!focused) return;
  if (console_) globalThis.pupitreConsole?.rfb?.focus();
  else document.getElementById("main").focus();
}

function tick() {
  const milliseconds = remaining();
  if (milliseconds > warn) {
    if (!warning.hidden) hide();
    return;
  }
  if (!confirmed || milliseconds <= 0) look();
  if (confirmed || !warning.hidden) show(Math.max(0, Math.ceil(milliseconds / 1000)));
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch("/api/v1/sessions/current/extend", { method: "POST" }).catch(() => null);
  if (answer?.status === 401) {
    lookedAt = -Infinity;
    look();
  } else if (!answer?.ok) {
    said.textContent = next.textContent = "The server does not answer. Try again.";
  } else {
    const session = await answer.json();
    follow(session);
    channel.postMessage(session);
    said.textContent = `You stay signed in until ${new Date(ends).toLocaleTimeString([], { timeStyle: "short" })}.`;
    // Each picture tells the host of a screen how long the sign-in lasts now.
    for (const screen of session.screens) fetch(screen).catch(() => {});
  }
});

channel.addEventListener("message", ({ data }) => {
  if (data === "look") {
    lookedAt = -Infinity;
    look();
  } else {
    follow(data);
  }
});

tick();
setInterval(tick, 1000);
document.addEventListener("visibilitychange", () => document.hidden || tick());
