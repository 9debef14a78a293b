// One connection to a desktop's screen, made again by itself when it breaks.

const FIRST_WAIT = 500; // ms, doubled at every failure
const LONGEST_WAIT = 15_000;
const SETTLED = 10_000; // ms of a good connection after which waits begin at FIRST_WAIT again

export class Connection {
  /**
   * `page.show(state, words, hint, next)` and `page.opened(rfb)` are told what happens. `words` are those of
   * `console_words` in labels.py: of each state (`words`, `next`, `over`), and of each close code.
   */
  constructor(desktop, target, RFB, page, words) {
    this.states = words.states;
    this.closes = words.closes;
    this.desktop = desktop;
    this.target = target;
    this.RFB = RFB;
    this.page = page;
    this.state = "connecting";
    this.rfb = null;
    this.live = false; // whether `rfb` shows a screen
    this.attempts = 0; // how often a connection was tried
    this.wait = FIRST_WAIT;
    this.timer = null;
    this.busy = false;
  }

  start() {
    this.say("connecting", "Connecting…");
    this.attempt();
    window.addEventListener("online", () => this.now());
    document.addEventListener("visibilitychange", () => document.hidden || this.now());
  }

  /** Try at once instead of at the end of the wait. */
  now() {
    if (this.state === "reconnecting" && !this.busy) {
      clearTimeout(this.timer);
      this.attempt();
    }
  }

  /** The portal says what state the desktop is in. */
  desktopIs(state, reason) {
    if (state === "running") {
      if (this.state === "waiting") this.goOn();
      return;
    }
    clearTimeout(this.timer);
    const { words, next, over } = this.states[state] ?? { words: state };
    if (over) this.rfb?.disconnect();
    this.say(over ? "ended" : "waiting", words, reason ?? "", next);
  }

  /** The desktop runs again: the connection has outlived it, or a new one is made. */
  goOn() {
    this.wait = FIRST_WAIT;
    if (this.live) {
      this.say("connected", "Connected");
    } else {
      this.say("connecting", "Connecting…");
      this.attempt();
    }
  }

  say(state, words, hint = "", next = "") {
    this.state = state;
    this.page.show(state, words, hint, next);
  }

  async attempt() {
    if (this.busy || this.rfb) return;
    this.busy = true;
    this.attempts += 1;
    try {
      const ticket = await this.ticket();
      if (ticket) this.open(ticket);
    } finally {
      this.busy = false;
    }
  }

  /** A new ticket, or null when the answer was no; what to do next is then settled. */
  async ticket() {
    let answer;
    try {
      answer = await fetch(`/api/v1/desktops/${this.desktop}/console`, { method: "POST" });
    } catch {
      this.again("The server does not answer.");
      return null;
    }
    if (answer.ok) return answer.json();
    const problem = await answer.json().catch(() => ({ detail: answer.statusText }));
    if (answer.status === 401) location.assign(`/signin?next=${encodeURIComponent(location.pathname)}`);
    else if (answer.status === 404) this.desktopIs("gone");
    else if (answer.status === 409) await this.ask(problem.detail);
    else this.again(problem.detail);
    return null;
  }

  /** It does not run: find out whether it still will. */
  async ask(detail) {
    const answer = await fetch(`/api/v1/desktops/${this.desktop}`).catch(() => null);
    const desktop = answer?.ok ? await answer.json() : null;
    if (answer?.status === 404) this.desktopIs("gone");
    else if (desktop && desktop.state !== "running") this.desktopIs(desktop.state, desktop.reason);
    else this.again(detail);
  }

  open({ url, ticket }) {
    const socket = new WebSocket(url, ["binary", ticket]);
    let code = 1006;
    socket.addEventListener("close", (event) => (code = event.code));
    let began = 0;
    const rfb = new this.RFB(this.target, socket, { shared: true });
    this.rfb = rfb;
    rfb.addEventListener("connect", () => {
      began = Date.now();
      this.live = true;
      this.say("connected", "Connected");
      this.page.opened(rfb);
    });
    rfb.addEventListener("disconnect", () => {
      this.rfb = null;
      this.live = false;
      if (began && Date.now() - began > SETTLED) this.wait = FIRST_WAIT;
      // The socket's own close event may come a moment after noVNC's.
      setTimeout(() => {
        if (this.state === "connecting" || this.state === "connected" || this.state === "reconnecting") {
          this.again(this.closes[code] ?? `The connection was closed (${code}).`);
        } else if (this.state === "waiting") {
          this.attempt();
        }
      });
    });
  }

  /** Wait, a little longer every time and never all browsers at once, then try again. */
  again(why) {
    const wait = this.wait * (0.75 + Math.random() / 2);
    this.wait = Math.min(this.wait * 2, LONGEST_WAIT);
    this.say("reconnecting", "Connecting again…", why);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.attempt(), wait);
  }
}
