// The console page: one connection to one screen, kept alive.
//
// A ticket opens one connection within 30 seconds, so every attempt asks for a new one.
// Nothing is tried while the desktop itself is not running: the portal tells us when it is.
// `main[data-state]` is connecting, connected, reconnecting, waiting or ended.

import { tick } from "./clock.js";
import { Connection } from "./connection.js";
import { typeText, watchSoftKeyboard } from "./typing.js";

const page = document.getElementById("main");
const desktop = page.dataset.desktop;
const find = (id) => document.getElementById(id);
const stage = find("stage");
const screen = find("screen");

const { default: RFB } = await import(page.dataset.rfb);

function show(state, words, hint = "", next = "") {
  page.dataset.state = state;
  find("link-text").textContent = words;
  find("curtain-text").textContent = words;
  find("curtain-hint").textContent = hint;
  find("curtain-next").textContent = next;
  find("curtain").hidden = state === "connected";
  find("again").hidden = state !== "reconnecting";
  for (const id of ["cad", "clipboard-send", "clipboard-type", "typing"]) find(id).disabled = state !== "connected";
  find("stop").disabled = state === "ended";
}

let fit = true;
function applyScaling(rfb) {
  rfb.scaleViewport = fit;
  rfb.clipViewport = !fit;
  rfb.dragViewport = !fit && matchMedia("(pointer: coarse)").matches;
}

const shown = {
  show,
  opened(rfb) {
    applyScaling(rfb);
    rfb.background = "#0b1211";
    rfb.focusOnClick = true;
    rfb.addEventListener("clipboard", (event) => {
      find("clipboard-text").value = event.detail.text;
    });
    if (!document.querySelector("dialog[open]") && find("clipboard-panel").hidden) rfb.focus();
  },
};
const connection = new Connection(desktop, screen, RFB, shown, JSON.parse(page.dataset.words));
globalThis.pupitreConsole = connection;

const LEAVING = "This desktop is shut down for maintenance in {}. Save your work.";
let hostTitle = page.dataset.hostTitle;
let takenAway = !find("leaving").hidden;

/** Its host is being shut down, or it is no longer. */
function leaving(told) {
  if (told.host && told.host !== page.dataset.host) hostTitle = told.host;
  const until = told.state === "running" && told.until ? Date.parse(told.until) : 0;
  const time = find("leaving-time");
  find("leaving-host").textContent = hostTitle;
  find("leaving").hidden = !until;
  if (told.state === "running") {
    if (takenAway && !until) find("spoken").textContent = "The desktop stays: its host is not shut down now.";
    takenAway = Boolean(until);
  }
  time.dataset.until = until;
  if (until) time.dataset.say = LEAVING;
  else delete time.dataset.say;
  tick();
}

// The portal's word on the desktop decides whether there is anything to connect to.
const events = new EventSource("/api/v1/events");
events.addEventListener("desktop", (event) => {
  const told = JSON.parse(event.data);
  if (told.id !== desktop) return;
  leaving(told);
  const why = told.reason ?? told.error?.reason ?? (takenAway ? `${hostTitle} is shut down for maintenance.` : "");
  connection.desktopIs(told.state, why);
});

// Toolbar
find("fullscreen").addEventListener("click", () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else page.requestFullscreen().then(() => connection.rfb?.focus(), () => {});
});
document.addEventListener("fullscreenchange", () => {
  find("fullscreen").setAttribute("aria-pressed", String(Boolean(document.fullscreenElement)));
});
find("cad").addEventListener("click", () => {
  connection.rfb?.sendCtrlAltDel();
  connection.rfb?.focus();
});
find("scaling").addEventListener("click", (event) => {
  fit = !fit;
  event.currentTarget.setAttribute("aria-pressed", String(fit));
  if (connection.rfb) applyScaling(connection.rfb);
});
find("clipboard").addEventListener("click", (event) => {
  const panel = find("clipboard-panel");
  panel.hidden = !panel.hidden;
  event.currentTarget.setAttribute("aria-expanded", String(!panel.hidden));
  if (panel.hidden) connection.rfb?.focus();
  else find("clipboard-text").focus();
});
find("clipboard-send").addEventListener("click", () => {
  connection.rfb?.clipboardPasteFrom(find("clipboard-text").value);
});
find("clipboard-type").addEventListener("click", () => {
  typeText(connection.rfb, find("clipboard-text").value);
  connection.rfb?.focus();
});
find("typing").addEventListener("click", () => find("soft-keys").focus());
watchSoftKeyboard(find("soft-keys"), () => connection.rfb);
find("again").addEventListener("click", () => connection.now());

for (const [button, dialog] of [["help", "help-dialog"], ["stop", "stop-dialog"]]) {
  find(button).addEventListener("click", () => find(dialog).showModal());
  find(dialog).querySelector("[data-cancel]").addEventListener("click", () => find(dialog).close());
  find(dialog).addEventListener("close", () => find(button).focus());
}

// Keyboard: the desktop takes every key, so one chord must lead out again.
const tools = [...document.querySelectorAll("[role=toolbar] button")];
const usable = () => tools.filter((tool) => !tool.disabled && tool.offsetParent);

stage.addEventListener(
  "keydown",
  (event) => {
    if (!(event.ctrlKey && event.altKey && event.shiftKey)) return;
    event.preventDefault();
    event.stopPropagation();
    window.dispatchEvent(new Event("blur")); // noVNC then lets go of every key that it holds
    connection.rfb?.blur();
    (document.querySelector("#sign-in-warning:not([hidden]) form:not([hidden]) button") ?? usable()[0]).focus();
  },
  { capture: true },
);
document.querySelector("[role=toolbar]").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const here = usable().indexOf(document.activeElement);
  if (step && here >= 0) {
    event.preventDefault();
    usable().at((here + step) % usable().length).focus();
  } else if (event.key === "Escape") {
    connection.rfb?.focus();
  }
});

connection.start();
