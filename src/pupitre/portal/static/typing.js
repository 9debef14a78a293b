// Keys that no keyboard pressed: text typed in for the user, and the on-screen keyboard of phones.

const SHIFT = 0xffe1;
const SPECIAL = new Map([["\n", 0xff0d], ["\t", 0xff09], ["\b", 0xff08]]);
const SHIFTED = /[A-Z~!@#$%^&*()_+{}|:"<>?]/; // on a US keyboard

function keysym(character) {
  const point = character.codePointAt(0);
  return SPECIAL.get(character) ?? (point < 0x100 ? point : 0x01000000 | point);
}

/** Presses the keys of `text` one after the other (US layout). */
export function typeText(rfb, text) {
  if (!rfb) return;
  for (const character of text.replaceAll("\r\n", "\n")) {
    const shift = SHIFTED.test(character);
    if (shift) rfb.sendKey(SHIFT, "ShiftLeft", true);
    rfb.sendKey(keysym(character), null);
    if (shift) rfb.sendKey(SHIFT, "ShiftLeft", false);
  }
}

/** Sends what a phone's keyboard puts into `field`. One character always stays in it, so that Backspace is heard. */
export function watchSoftKeyboard(field, rfb) {
  const KEEP = "_";
  const reset = () => {
    field.value = KEEP;
    field.setSelectionRange(1, 1);
  };
  field.addEventListener("focus", reset);
  field.addEventListener("input", (event) => {
    if (event.isComposing) return;
    if (field.value.length < KEEP.length) typeText(rfb(), "\b");
    else typeText(rfb(), field.value.slice(KEEP.length));
    reset();
  });
  field.addEventListener("compositionend", () => {
    typeText(rfb(), field.value.slice(KEEP.length));
    reset();
  });
}
