// Pictures go to POST tag, some at once. All that comes from outside becomes text, never HTML.
"use strict";
const AT_ONCE = 4, MAYBE = 6, AGAIN_MS = 1000, TIMES = 30;
const at = id => document.getElementById(id);
const pictures = [];  // {file, name, state, error, probs: Map, decided: Set, added: Set, removed: Set, more, card}
let kept = null;
try { kept = sessionStorage; } catch { /* a browser that keeps nothing */ }
let known = [], limits = {}, token = kept?.getItem("token") || "", running = 0, unsaved = false;

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// What somebody else has named, in the direction of its own script.
const text = (tag, className, name) => Object.assign(make(tag, className, name), {dir: "auto"});

const percent = p => p === undefined ? "" : p > 0 && p < .01 ? "< 1 %" : `${Math.round(100 * p)} %`;

async function ask(path, options = {}) {
  const headers = {...options.headers, ...(token && {Authorization: `Bearer ${token}`})};
  const answer = await fetch(path, {...options, headers});
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(told.error || `the server answers ${answer.status}`), {status: answer.status});
}

async function begin() {
  try {
    const found = await (await ask("labels")).json();
    known = found.labels.map(label => label.name);
    limits = found.limits;
    at("labels").replaceChildren(...known.map(name => Object.assign(make("option"), {value: name})));
    at("about").textContent = `${known.length} labels; ensemble ${found.ensemble}, decided by ${found.decided_by}`;
    at("locked").hidden = true;
    at("open").hidden = false;
    if (token) kept?.setItem("token", token);
    pictures.filter(one => one.state === "locked").forEach(one => { one.state = "waits"; });
    run();
  } catch (error) {
    if (error.status === 401) return lock();
    at("open").hidden = false;
    at("message").textContent = error.status ? error.message : "The server does not answer: reload the page.";
  }
}

function lock() {
  at("wrong").textContent = token ? "That is not the token." : "";
  token = "";
  kept?.removeItem("token");
  at("open").hidden = true;
  at("locked").hidden = false;
  at("token").value = "";
  at("token").focus();
}

at("locked").onsubmit = event => {
  event.preventDefault();
  token = at("token").value.trim();
  begin();
};

function take(files) {
  at("message").textContent = "";
  for (const file of files) {
    const one = {file, name: file.name || "photo.jpg", state: "waits", error: "", probs: new Map(), decided: new Set(),
      added: new Set(), removed: new Set(), more: false, card: make("article", "picture")};
    one.url = URL.createObjectURL(file);
    if (limits.picture_bytes && file.size > limits.picture_bytes)
      Object.assign(one, {state: "failed", error: `${one.name} has more than ${limits.picture_bytes / 1e6} MB`});
    pictures.push(one);
    at("pictures").append(one.card);
    show(one);
  }
  run();
}

function run() {
  tally();
  while (running < AT_ONCE) {
    const one = pictures.find(one => one.state === "waits");
    if (!one) return;
    running += 1;
    one.state = "runs";
    show(one);
    tag(one).finally(() => { running -= 1; show(one); run(); });
  }
}

async function tag(one) {
  const path = `tag?top=${known.length}&name=${encodeURIComponent(one.name)}`;
  const headers = {"Content-Type": one.file.type || "application/octet-stream"};
  for (let left = TIMES; ; left -= 1) {
    try {
      const found = (await (await ask(path, {method: "POST", headers, body: one.file})).json()).pictures[0];
      for (const {name, probability} of found.probabilities) one.probs.set(name, probability);
      one.decided = new Set(found.labels.map(label => label.name));
      one.state = "done";
      return;
    } catch (error) {
      if (error.status === 401) { one.state = "locked"; return lock(); }
      if (error.status !== 503 || !left) {
        one.state = "failed";
        one.error = error.status ? error.message : "The server did not answer.";
        return;
      }
      await new Promise(done => setTimeout(done, AGAIN_MS));
    }
  }
}

// The picture's labels, the most probable first.
function tags(one) {
  const least = at("by-threshold").checked ? at("threshold").value / 100 : null;
  const chosen = least === null ? one.decided : new Set([...one.probs].filter(([, p]) => p >= least).map(([name]) => name));
  const found = new Set([...chosen, ...one.added].filter(name => !one.removed.has(name)));
  return [...found].sort((a, b) => (one.probs.get(b) ?? -1) - (one.probs.get(a) ?? -1));
}

function choose(one, name, wanted) {
  (wanted ? one.added : one.removed).add(name);
  (wanted ? one.removed : one.added).delete(name);
  unsaved = true;
  const buttons = () => [...one.card.querySelectorAll("li button")], place = buttons().indexOf(document.activeElement);
  show(one);
  if (place < 0) return;
  buttons().slice(0, place + 1).pop()?.focus();  // for the keyboard, which is still there
  if (!one.card.contains(document.activeElement)) one.card.querySelector(".add input").focus();
}

function row(one, name, chosen) {
  const made = make("li", (chosen ? "tag" : "maybe") + (one.added.has(name) ? " hand" : ""));
  const bar = make("span", "bar"), button = make("button", "", chosen ? "×" : "+");
  bar.style.setProperty("--share", one.probs.get(name) ?? 0);
  button.setAttribute("aria-label", `${chosen ? "remove" : "add"} ${name}`);
  button.onclick = () => choose(one, name, !chosen);
  made.append(text("span", "name", name), make("span", "share", percent(one.probs.get(name))), bar, button);
  return made;
}

function adder(one) {
  const made = make("form", "add"), input = make("input"), told = make("small", "miss");
  Object.assign(input, {type: "text", placeholder: "add a label", dir: "auto"});
  input.setAttribute("list", "labels");
  input.setAttribute("aria-label", `add a label to ${one.name}`);
  made.append(input, make("button", "", "add"));
  made.onsubmit = event => {
    event.preventDefault();
    const name = input.value.trim();
    if (!known.includes(name)) { told.textContent = name && `There is no label ${name}.`; return; }
    choose(one, name, true);
    one.card.querySelector(".add input").focus();
  };
  const both = make("div");
  both.append(made, told);
  return both;
}

function show(one) {
  const card = one.card, header = make("header"), image = make("img"), drop = make("button", "quiet", "×");
  drop.setAttribute("aria-label", `remove ${one.name} from the page`);
  drop.onclick = () => forget(one);
  header.append(text("h2", "", one.name), drop);
  Object.assign(image, {loading: "lazy", decoding: "async", src: one.url, alt: "", onerror: () => { image.hidden = true; }});
  card.replaceChildren(header, card.querySelector("img") || image);
  card.dataset.state = one.state;
  if (one.state === "failed") {
    const again = make("button", "", "try again");
    again.onclick = () => { one.state = "waits"; run(); };
    card.append(make("p", "miss", one.error), again);
  } else if (one.state !== "done") {
    card.append(make("p", "", one.state === "runs" ? "is looked at …" : "waits"));
  } else {
    const chosen = tags(one), list = make("ul"), rest = make("ul"), more = make("details");
    list.append(...chosen.map(name => row(one, name, true)));
    const others = [...one.probs.keys()].filter(name => !chosen.includes(name)).slice(0, MAYBE);
    rest.append(...others.map(name => row(one, name, false)));
    more.append(make("summary", "", "less likely"), rest);
    more.open = one.more;
    more.ontoggle = () => { one.more = more.open; };
    card.append(chosen.length ? list : make("p", "", "no label"), adder(one), more);
  }
}

function forget(one) {
  URL.revokeObjectURL(one.url);
  pictures.splice(pictures.indexOf(one), 1);
  const next = one.card.nextSibling || one.card.previousSibling, focused = one.card.contains(document.activeElement);
  one.card.remove();
  if (focused) (next?.querySelector("header button") || at("files")).focus();
  tally();
}

function tally() {
  const count = state => pictures.filter(one => one.state === state).length;
  const done = count("done"), failed = count("failed");
  at("bar").hidden = !pictures.length;
  at("csv").disabled = at("xmp").disabled = !done;
  at("progress").firstChild.textContent = `${done} of ${pictures.length} tagged${failed ? `, ${failed} failed` : ""}`;
  at("again").hidden = !failed;
  document.title = pictures.length > done ? `${done} of ${pictures.length} tagged` : "Tag pictures";
}

async function download(kind) {
  at("message").textContent = "";
  const chosen = pictures.filter(one => one.state === "done").map(one => ({
    name: one.name,
    labels: tags(one).map(name => ({name, probability: one.probs.get(name)})),
    edited: one.added.size + one.removed.size > 0,
  }));
  const by = at("by-threshold").checked ? `probability at least ${at("threshold").value / 100}` : null;
  try {
    const body = JSON.stringify({pictures: chosen, decided_by: by});
    const answer = await ask(kind, {method: "POST", headers: {"Content-Type": "application/json"}, body});
    const name = decodeURIComponent(/filename\*=UTF-8''(.+)$/.exec(answer.headers.get("Content-Disposition"))[1]);
    const link = Object.assign(make("a"), {href: URL.createObjectURL(await answer.blob()), download: name});
    link.click();
    unsaved = false;
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  } catch (error) {
    if (error.status === 401) return lock();
    at("message").textContent = error.status ? error.message : "The server does not answer.";
  }
}

let drawing = 0;
function decide() {
  at("percent").value = `${at("threshold").value} %`;
  cancelAnimationFrame(drawing);  // a slider says more than can be drawn
  drawing = requestAnimationFrame(() => pictures.filter(one => one.state === "done").forEach(show));
}
at("threshold").oninput = () => { at("by-threshold").checked = true; decide(); };
at("decided").onchange = at("by-threshold").onchange = decide;
at("again").onclick = () => {
  pictures.filter(one => one.state === "failed").forEach(one => { one.state = "waits"; show(one); });
  run();
};
at("csv").onclick = () => download("csv");
at("xmp").onclick = () => download("xmp");
at("clear").onclick = () => {
  if (unsaved && !confirm("Your changes have not been downloaded. Remove all pictures?")) return;
  [...pictures].forEach(forget);
  unsaved = false;
};
addEventListener("beforeunload", event => { if (unsaved && pictures.length) event.preventDefault(); });
at("files").onchange = at("camera").onchange = event => { take(event.target.files); event.target.value = ""; };
addEventListener("dragover", event => { event.preventDefault(); at("drop").classList.add("over"); });
addEventListener("dragleave", event => { if (!event.relatedTarget) at("drop").classList.remove("over"); });
addEventListener("drop", event => {
  event.preventDefault();
  at("drop").classList.remove("over");
  if (!at("open").hidden) take([...event.dataTransfer.files]);
});
addEventListener("paste", event => { if (!at("open").hidden) take([...event.clipboardData.files]); });
begin();
