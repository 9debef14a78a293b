// The first page: pictures of screens, the dialog before Stop, and words for screen readers.
// Everything else on it is HTML that the server sends when something changes.

const PICTURE_EVERY = 15_000; // ms; only while the page is in sight

const board = document.getElementById("board");
const spoken = document.getElementById("spoken");
const dialog = document.getElementById("stop-dialog");

// A picture that is shown stays while the HTML around it changes.
Idiomorph.defaults.callbacks.beforeNodeMorphed = (node) => !(node instanceof HTMLImageElement && node.dataset.screen);

/** Loads a new picture beside the old one, and swaps them when it is there. */
function refresh(image) {
  const next = image.cloneNode();
  next.hidden = false;
  next.onload = () => image.isConnected && image.replaceWith(next);
  next.src = `${image.dataset.screen}?at=${Date.now()}`;
}

function refreshAll() {
  if (!document.hidden) board.querySelectorAll("img[data-screen]").forEach(refresh);
}

let states = new Map();

/** Says aloud what changed, and takes a first picture of a desktop that has just begun to run. */
function compare() {
  const now = new Map();
  for (const card of board.querySelectorAll("[data-desktop]")) {
    now.set(card.dataset.desktop, card.dataset.state);
    if (states.get(card.dataset.desktop) === card.dataset.state) continue;
    const name = card.querySelector("h3").textContent;
    const words = card.querySelector(".state .words").textContent;
    if (states.has(card.dataset.desktop) || states.size || card.dataset.state !== "running") {
      spoken.textContent = `${name}: ${words}`;
    }
    card.querySelectorAll("img[data-screen]").forEach(refresh);
  }
  states = now;
}

board.addEventListener("click", (event) => {
  const button = event.target.closest("[data-stop]");
  if (!button) return;
  event.preventDefault();
  const form = dialog.querySelector("form");
  const path = `/desktops/${button.dataset.stop}/stop`;
  form.action = path;
  form.setAttribute("hx-post", path);
  htmx.process(form);
  dialog.querySelector("[data-name]").textContent = button.dataset.name;
  dialog.showModal();
});
dialog.querySelector("[data-cancel]").addEventListener("click", () => dialog.close());
dialog.querySelector("form").addEventListener("submit", () => dialog.close());

document.addEventListener("htmx:afterSettle", compare);
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.matches("form")) document.getElementById("notice").replaceChildren();
});
document.addEventListener("visibilitychange", refreshAll);
window.addEventListener("focus", refreshAll);
setInterval(refreshAll, PICTURE_EVERY);
compare();
