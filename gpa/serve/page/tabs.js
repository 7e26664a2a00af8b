// Tasks as tabs: arrows, Home and End move between them, as the ARIA practices have it.

import { keep, setting } from "./address.js";

const all = [...document.querySelectorAll("[role=tab]")];
const shown = () => all.filter((tab) => !tab.hidden);

function select(tab, focus = false) {
  for (const each of all) {
    each.setAttribute("aria-selected", each === tab);
    each.tabIndex = each === tab ? 0 : -1;
    document.getElementById(each.getAttribute("aria-controls")).hidden = each !== tab;
  }
  tab.scrollIntoView({ block: "nearest", inline: "center" });
  if (focus) tab.focus();
}

// Show the tabs of the tasks that the server has, and the one that the address asks for.
export function startTabs(tasks) {
  all.forEach((tab) => { tab.hidden = !tasks.includes(tab.getAttribute("aria-controls")); });
  for (const tab of all) {
    tab.addEventListener("click", () => { select(tab); keep("task", tab.getAttribute("aria-controls")); });
    tab.addEventListener("keydown", ({ key }) => {
      const tabs = shown(), at = tabs.indexOf(tab);
      const to = { ArrowRight: (at + 1) % tabs.length, ArrowLeft: (at + tabs.length - 1) % tabs.length, Home: 0, End: tabs.length - 1 }[key];
      if (to === undefined) return;
      select(tabs[to], true);
      keep("task", tabs[to].getAttribute("aria-controls"));
    });
  }
  select(shown().find((tab) => tab.getAttribute("aria-controls") === setting("task")) ?? shown()[0]);
}
