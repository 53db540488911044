// Keeps the live part of the page current: an event of the server, or fifteen seconds without one (ages of
// things grow stale), fetches the fragment again. What a person has opened, focused or scrolled stays so.
"use strict";
(() => {
  const live = document.getElementById("live");
  const link = document.getElementById("link");
  const announce = document.getElementById("announce");
  if (!live || !window.EventSource) return;
  let busy = false, again = false, last = announce.textContent;

  const show = (state, text) => {
    if (link.dataset.state === state) return;
    link.dataset.state = state;
    link.lastElementChild.textContent = text;
  };

  const refresh = async () => {
    if (busy) { again = true; return; }
    busy = true;
    try {
      const answer = await fetch(live.dataset.fragment, { credentials: "same-origin" });
      if (!answer.ok) throw new Error(answer.statusText);
      swap(await answer.text());
      show("live", "Live");
    } catch { show("lost", "Connection lost, trying again"); }
    busy = false;
    if (again) { again = false; soon(); }
  };

  const swap = (html) => {
    if (html === live.dataset.html) return;
    const changed = [...live.querySelectorAll("details[id]")].map((d) => [d.id, d.open]);
    const focused = document.activeElement && document.activeElement.id;
    live.innerHTML = html;
    live.dataset.html = html;
    for (const [id, open] of changed) {
      const details = document.getElementById(id);
      if (details) details.open = open;
    }
    const again = focused && document.getElementById(focused);
    if (again) again.focus({ preventScroll: true });
    const status = live.querySelector("[data-announce]");
    if (status && status.dataset.announce !== last) announce.textContent = last = status.dataset.announce;
  };

  let timer = 0;
  // Events come in bursts; one look a third of a second after the first of them shows them all.
  const soon = () => { if (!timer) timer = setTimeout(() => { timer = 0; refresh(); }, 333); };

  const source = new EventSource("/events/stream");
  source.onopen = () => { show("live", "Live"); soon(); };
  source.onmessage = soon;
  source.addEventListener("change", soon);
  source.onerror = () => show("lost", "Connection lost, trying again");
  setInterval(() => { if (!document.hidden) soon(); }, 15000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) soon(); });
})();
