// Time on pages. The server writes moments (Unix ms) and its own clock (`data-now`); this module counts on from there:
// `data-since` up, `data-until` down (`data-say`: said aloud at few moments, never every second), `data-wait` until a
// button may be pressed again. `#heard` says when the cluster last confirmed every row: what carries `data-as-of` is
// shown while that is too long ago, whatever the reason. `time[data-clock]` is shown in local time.

const SAY_AT = [Infinity, 60, 30, 10]; // seconds left

/** The same words as `duration` in labels.py. */
function words(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} days`;
}

/** The same as `countdown` in labels.py. */
const minutes = (seconds) => `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// The server's clock and ours differ; the newest `data-now` says by how much.
let newest = 0;
let ahead = 0;

function compareClocks() {
  const times = [...document.querySelectorAll("[data-now]")].map((element) => Number(element.dataset.now));
  const said = Math.max(0, ...times);
  if (said > newest) {
    newest = said;
    ahead = said - Date.now();
  }
}

const said = new Map(); // a countdown's words, and at how many seconds left they were last said

function say(element, left) {
  const mark = SAY_AT.findLast((seconds) => left <= seconds);
  const key = element.dataset.say + element.dataset.until;
  if (left === 0 || said.get(key) === mark) return;
  said.set(key, mark);
  const spoken = document.getElementById("spoken");
  if (spoken) spoken.textContent = element.dataset.say.replace("{}", left < 120 ? `${left} seconds` : words(left * 1000));
}

function markWhatIsOld(now) {
  const heard = document.getElementById("heard");
  const age = heard ? now - Number(heard.dataset.heard) : 0;
  const old = heard !== null && age > Number(heard.dataset.staleAfter);
  for (const element of document.querySelectorAll("[data-as-of]")) {
    element.hidden = !old;
    if (old) put(element.querySelector("[data-age]"), words(age));
  }
}

export function tick() {
  compareClocks();
  const now = Date.now() + ahead;
  for (const element of document.querySelectorAll("[data-since]")) put(element, words(now - Number(element.dataset.since)));
  for (const element of document.querySelectorAll("[data-until]")) {
    const left = Math.max(0, Math.ceil((Number(element.dataset.until) - now) / 1000));
    put(element, minutes(left));
    if (element.dataset.say) say(element, left);
  }
  for (const element of document.querySelectorAll("[data-wait]")) {
    const left = Math.max(0, Math.ceil((Number(element.dataset.wait) - now) / 1000));
    put(element, left ? `You can press again in ${left} s.` : "You can press again now.");
  }
  for (const element of document.querySelectorAll("time[data-clock]")) {
    const style = { dateStyle: "medium", timeStyle: element.dataset.clock === "seconds" ? "medium" : "short" };
    put(element, new Date(element.dateTime).toLocaleString([], style));
  }
  markWhatIsOld(now);
}

tick();
setInterval(() => document.hidden || tick(), 1000);
document.addEventListener("visibilitychange", () => document.hidden || tick());
document.addEventListener("htmx:afterSettle", tick);
