// Counts times on from what the server wrote (`data-since` and `data-now`, Unix ms), and shows moments in local time.

/** The same words as `duration` in views.py. */
function words(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} days`;
}

// The server's clock and ours differ; the newest `data-now` says by how much.
let newest = 0;
let ahead = 0;

function tick() {
  const times = [...document.querySelectorAll("[data-since]")];
  const said = Math.max(0, ...times.map((element) => Number(element.dataset.now)));
  if (said > newest) {
    newest = said;
    ahead = said - Date.now();
  }
  for (const element of times) {
    const text = words(Date.now() + ahead - Number(element.dataset.since));
    if (element.textContent !== text) element.textContent = text;
  }
  for (const element of document.querySelectorAll("time[data-clock]")) {
    const text = new Date(element.dateTime).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    if (element.textContent !== text) element.textContent = text;
  }
}

tick();
setInterval(() => document.hidden || tick(), 1000);
document.addEventListener("visibilitychange", () => document.hidden || tick());
document.addEventListener("htmx:afterSettle", tick);
