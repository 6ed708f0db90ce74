// Shows the newest page in place: what is unfolded, where the reader is and the focus stay.
"use strict";
const SECONDS = 2;
let shown = document.documentElement.dataset.stamp;

const focusable = () => [...document.querySelectorAll("a[href], summary")];

function replaceBody(text) {
  const next = new DOMParser().parseFromString(text, "text/html");
  const open = [...document.querySelectorAll("details")].map((each) => each.open);
  const focus = focusable().indexOf(document.activeElement);
  const [x, y] = [window.scrollX, window.scrollY];
  document.title = next.title;
  document.body.replaceChildren(...next.body.childNodes);
  document.querySelectorAll("details").forEach((each, i) => { each.open = Boolean(open[i]); });
  focusable()[focus]?.focus({ preventScroll: true });
  window.scrollTo(x, y);
  return next.documentElement.dataset.stamp;
}

function say(text) {
  const line = document.getElementById("live");
  if (line && line.textContent !== text) line.textContent = text;
}

async function look() {
  try {
    const stamp = await fetch("stamp", { cache: "no-store" });
    if (stamp.ok && (await stamp.text()) !== shown) {
      const page = await fetch(".", { cache: "no-store" });
      if (page.ok) shown = replaceBody(await page.text());
    }
    say(`Live: as of ${new Date(1000 * parseFloat(shown)).toLocaleTimeString()}.`);
  } catch (error) {
    say("Live: the server has ended; this is the last it showed.");
  }
  setTimeout(look, 1000 * SECONDS);
}

look();
