// Comfort only, everything works without: copy buttons, and an inbox that shows new SMS by itself.
"use strict";
document.documentElement.classList.add("js");
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent.trim());
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source); // no clipboard over plain http
    button.textContent = "Selected";
  }
  await pause(2000);
  button.textContent = "Copy";
});

// Of all operators, the list offers those of the chosen country
const country = document.getElementById("country_id");
if (country) {
  const narrow = () => {
    for (const group of document.querySelectorAll("optgroup[data-country]"))
      group.hidden = group.disabled = country.value !== "" && group.dataset.country !== country.value;
  };
  country.addEventListener("change", () => { country.form.operator_id.value = ""; narrow(); });
  narrow();
}
const inbox = document.getElementById("inbox");
if (inbox?.dataset.left) watch(Date.now() + 1000 * inbox.dataset.left);

async function watch(end) {
  while (Date.now() < end) {
    const began = Date.now();
    const newest = inbox.querySelector("[data-id]")?.dataset.id ?? 0;
    const state = inbox.querySelector(".badge.pending") ? "pending" : "";
    try {
      const answer = await fetch(`${inbox.dataset.from}&after=${newest}&state=${state}`);
      if (answer.redirected) break; // logged out
      if (!answer.ok) throw new Error(answer.status);
      show(await answer.text());
    } catch {
      await pause(5000);
    }
    await pause(Math.max(0, 1000 - (Date.now() - began)));
  }
  location.reload();
}

function show(html) {
  const selection = getSelection();
  if (!selection.isCollapsed && inbox.contains(selection.anchorNode)) return;
  const opened = [...inbox.querySelectorAll("details[open]")].map((element) => element.id);
  const focused = inbox.contains(document.activeElement) && document.activeElement.id;
  inbox.innerHTML = html;
  for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
  if (focused) document.getElementById(focused)?.focus();
}
