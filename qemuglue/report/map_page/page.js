"use strict";
// Texts of QEMU are data: they reach the page as text nodes only, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const TOP = 1n << 64n;
  const SVG = "http://www.w3.org/2000/svg";
  const byId = (id) => document.getElementById(id);
  const answer = byId("answer"), query = byId("query"), tip = byId("tip"), tabs = byId("tabs");
  const panels = [...document.querySelectorAll(".view")];
  let current = 0;

  const views = data.views.map((view) => ({
    names: view.names,
    ports: view.ports,
    rows: view.rows.map(([start, y, height]) => ({start: BigInt(start), y, height})),
    claims: view.claims.map(([start, last, region, offset, via, readonly]) => ({
      start: BigInt(start), last: BigInt(last), region: data.regions[region], number: region,
      offset: BigInt(offset), via, readonly,
    })),
  }));
  // Everything drawn that can be found: boxes and holes.
  const drawn = [...document.querySelectorAll(".b, .gap")].map((element) => ({
    element,
    view: panels.indexOf(element.closest(".view")),
    start: BigInt(element.dataset.a),
    last: BigInt(element.dataset.l),
    layer: Number(element.dataset.d || 0),
    region: element.dataset.r === undefined ? null : data.regions[Number(element.dataset.r)],
  }));

  const hex = (value) => "0x" + value.toString(16);
  const plus = (offset) => "+ " + (offset < 10n ? String(offset) : hex(offset));
  const nameOf = (region) => region.n || "(unnamed)";
  function make(tag, text, name) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  }

  // -- what an address leads to ---------------------------------------------------------

  function stackAt(view, address) {
    return views[view].claims.filter((c) => c.start <= address && address <= c.last);
  }
  function topAt(view, address) {
    return stackAt(view, address).find((claim) => claim.region.a) || null;
  }

  function accepted(ranges, offset, size) {
    return ranges.some(([of, start, last, step]) => of === size && offset >= BigInt(start)
      && offset <= BigInt(last) && (offset - BigInt(start)) % BigInt(step) === 0n);
  }

  // One access in words: [text, accepted as a whole]. The cuts were made by the model.
  function cut(claim, write, size, offset, left) {
    const region = claim.region, further = "goes on in the next range";
    const memory = region.mem === "ram" || (!write && ["rom", "romd"].includes(region.mem));
    if (memory) return BigInt(size) > left ? [further, false] : ["copied", true];
    const number = write ? region.w : region.r;
    if (number < 0) return ["?", false];
    const [text, chunks] = data.contracts[number].cuts[Math.log2(size)][Number(offset & 7n)];
    // A dispatch may run over the end of a range; one that would begin behind it is the next's.
    let done = 0;
    for (const chunk of chunks) {
      if (BigInt(done) >= left) return [further, false];
      done += chunk;
    }
    if (region.mem === "root") return ["all ones", true];
    const veto = write ? region.vw : region.vr;
    if (!veto) return [text, !text.includes("refused")];
    let at = offset, good = 0;
    for (const chunk of chunks) {
      good += accepted(veto, at, chunk);
      at += BigInt(chunk);
    }
    if (good === chunks.length) return [text, !text.includes("refused")];
    return [good ? "partly refused (rejected)" : "refused (rejected)", false];
  }

  // As `manner` of dispatch_text.py has it.
  function manner(view, claim, offset, left) {
    const region = claim.region;
    if (region.mem === "ram") return claim.readonly ? data.words.readonly : data.words.ram;
    if (region.mem === "rom") return data.words.rom;
    if (region.mem === "romd") return data.words.romd;
    if (region.mem === "root") return data.words.root;
    if (region.r < 0) return "a device, its pieces not probed";
    const sizes = new Set();
    let refusal = "";
    for (const size of views[view].ports ? [1, 2, 4] : [1, 2, 4, 8]) {
      const [text, good] = cut(claim, false, size, offset, left);
      if (good) text.split("+").forEach((part) => sizes.add(Number(part.split(" as ").pop())));
      else refusal = refusal || (/refused \(([\w ]+)\)/.exec(text) || ["", ""])[1];
    }
    const all = [...sizes].sort((a, b) => a - b);
    if (!all.length) return `every access is refused (${refusal})`;
    if (all.length === 1) return `${all[0]}-byte pieces`;
    return `pieces of ${all[0]} to ${all[all.length - 1]} bytes`;
  }

  function headline(view, address) {
    const claim = topAt(view, address);
    if (!claim) return `${hex(address)} → nothing answers`;
    const offset = claim.offset + address - claim.start;
    const end = rangeAt(view, address).last;
    return `${hex(address)} → ${nameOf(claim.region)} ${plus(offset)}, ` +
      manner(view, claim, offset, end - address + 1n);
  }

  function rangeAt(view, address) {
    return drawn.find((each) => each.view === view && !each.layer && each.start <= address
      && address <= each.last);
  }

  function explain(view, address) {
    const parts = [make("h3", headline(view, address))];
    const stack = stackAt(view, address), claim = topAt(view, address);
    const range = rangeAt(view, address);
    const where = `in ${data.views[view].title}: ${hex(range.start)} to ${hex(range.last)}`;
    if (!claim) {
      parts.push(make("p", `${where}. Reads give 0, and the transaction is refused (rejected).`));
    } else {
      const region = claim.region;
      parts.push(make("p", `${where}, ${region.t}, ${region.o || "no owner"}`, "faint"));
      if (claim.via.length) {
        parts.push(make("p", "seen through the alias " + claim.via.join(", then ")));
      }
      parts.push(accessTable(view, claim, claim.offset + address - claim.start,
        range.last - address + 1n));
      const words = contractWords(region);
      if (words) parts.push(make("p", words, "faint"));
    }
    const below = stack.filter((each) => each.region.a && each !== claim);
    const lines = below.map((each) => `hidden below: ${nameOf(each.region)} ` +
      plus(each.offset + address - each.start));
    const holders = stack.filter((each) => !each.region.a).map((each) =>
      `${nameOf(each.region)} ${plus(each.offset + address - each.start)}`);
    if (holders.length) lines.push(`containers here: ${holders.join(", ")}`);
    for (const line of lines) parts.push(make("p", line, "faint"));
    const elsewhere = views.map((_, other) => other).filter((other) => other !== view &&
      topAt(other, address)).slice(0, 8);
    if (elsewhere.length) {
      const list = make("ul");
      for (const other of elsewhere) {
        const item = make("li", `${data.views[other].title}: `);
        item.append(link(headline(other, address), `${views[other].names[0]}:${hex(address)}`));
        list.append(item);
      }
      parts.push(make("p", "in other address spaces:", "faint"), list);
    }
    reply(...parts);
    point(view, address, range);
  }

  function accessTable(view, claim, offset, left) {
    const rows = (views[view].ports ? [1, 2, 4] : [1, 2, 4, 8]).map((size) => [String(size),
      cut(claim, false, size, offset, left)[0], cut(claim, true, size, offset, left)[0]]);
    const [, reads, writes] = rows[0];
    if (rows.every((row) => row[1] === reads && row[2] === writes)) {
      return make("p", `Whatever its size, a read is ${told(reads)}, a write ${told(writes)}.`);
    }
    const table = make("table"), head = make("tr");
    for (const word of ["bytes", "pieces of a read", "pieces of a write"]) {
      head.append(make("th", word));
    }
    table.append(head);
    for (const row of rows) {
      const line = make("tr");
      for (const cell of row) line.append(make("td", cell));
      table.append(line);
    }
    return table;
  }
  const told = (text) => ({"?": "not known", "all ones": "for no port: all ones"}[text] || text);

  function contractWords(region) {
    if (region.mem === "ram" || region.mem === "rom" || region.mem === "root") return "";
    const number = region.mem === "romd" ? region.w : region.r;
    if (number < 0) return region.why ? `its contract: ${region.why}` : "";
    return data.contracts[number].words + (region.veto ? `; ${region.veto}` : "");
  }

  function link(text, target) {
    const element = make("a", text, "mono");
    element.href = "#" + encodeURIComponent(target);
    return element;
  }

  // -- the picture ----------------------------------------------------------------------

  function clear() {
    for (const element of document.querySelectorAll(".hit")) element.classList.remove("hit");
    for (const element of document.querySelectorAll(".needle")) element.remove();
  }

  function point(view, address, range) {
    show(view);
    clear();
    range.element.classList.add("hit");
    const rows = views[view].rows;
    let at = rows.length - 1;
    while (rows[at].start > address) at -= 1;
    const next = at + 1 < rows.length ? rows[at + 1].start : TOP;
    const share = Number((address - rows[at].start) * 1000n / (next - rows[at].start)) / 1000;
    const y = rows[at].y + 1 + share * (rows[at].height - 2);
    const needle = document.createElementNS(SVG, "path");
    needle.setAttribute("class", "needle");
    const x = Number(range.element.querySelector("rect").getAttribute("x"));
    needle.setAttribute("d", `M${x - 1} ${y}l-7 -5v10zM${x} ${y}h14`);
    range.element.parentNode.append(needle);
    reveal(range.element.parentNode.querySelector(".needle"));
  }

  // A narrow window has the answer over its lower part.
  function reveal(element) {
    const box = element.getBoundingClientRect();
    const most = innerHeight * (matchMedia("(min-width:1240px)").matches ? 0.85 : 0.5);
    if (box.top < 110 || box.bottom > most) scrollBy(0, box.top - innerHeight * 0.3);
  }

  function show(view) {
    current = view;
    panels.forEach((panel, number) => { panel.hidden = number !== view; });
    [...tabs.children].forEach((tab, number) => {
      tab.setAttribute("aria-selected", String(number === view));
      tab.tabIndex = number === view ? 0 : -1;
    });
  }

  // -- searching ------------------------------------------------------------------------

  function spaceOf(text) {
    let best = null;
    views.forEach((view, number) => view.names.forEach((name) => {
      if (text.startsWith(name + ":") && (!best || name.length > best.name.length)) {
        best = {name, number};
      }
    }));
    return best;
  }

  function numberOf(text) {
    const plain = text.replace(/_/g, "");
    if (/^0x[0-9a-f]+$/i.test(plain) || /^[0-9]+$/.test(plain)) return BigInt(plain);
    return null;
  }

  function find(text) {
    const space = spaceOf(text);
    let view = 0, wanted = text;
    if (space) {
      view = space.number;
      wanted = text.slice(space.name.length + 1).trim();
      if (!wanted) { show(view); quiet(); clear(); return; }
    }
    let address = numberOf(wanted);
    const places = address === null ? named(wanted, space ? view : null) : [];
    if (address === null && !places.length && /^[0-9a-f]{3,16}$/i.test(wanted)) {
      address = BigInt("0x" + wanted);
    }
    if (address !== null) {
      if (address >= TOP) { say(`${wanted} is beyond 2^64 - 1`); return; }
      if (!space) view = Math.max(views.findIndex((_, each) => topAt(each, address)), 0);
      explain(view, address);
      return;
    }
    const sign = wanted.lastIndexOf("+");
    const offset = sign > 0 ? numberOf(wanted.slice(sign + 1).trim()) : null;
    if (!places.length && offset !== null) {
      const hit = shows(wanted.slice(0, sign).trim(), offset, view, Boolean(space));
      if (hit) explain(hit.view, hit.address);
      else say(`nothing shows ${wanted}`);
      return;
    }
    list(wanted, places);
  }

  function named(text, view) {
    const low = text.toLowerCase();
    const called = (each) => nameOf(each.region).toLowerCase();
    const found = drawn.filter((each) => each.region && (view === null || each.view === view)
      && (called(each).includes(low) || seenAs(each).some((name) => name.includes(low))));
    const rank = (each) => [!exactly(each, text),
      !called(each).includes(low), each.layer > 0, each.view].map(Number);
    return found.map((each) => [rank(each), each]).sort(([a], [b]) => {
      const at = a.findIndex((value, index) => value !== b[index]);
      return at < 0 ? 0 : a[at] - b[at];
    }).map(([, each]) => each);
  }

  function exactly(each, text) {
    const low = text.toLowerCase();
    return nameOf(each.region).toLowerCase() === low || seenAs(each).includes(low);
  }

  // The aliases a box is seen through.
  function seenAs(each) {
    const claim = each.layer ? null : topAt(each.view, each.start);
    return claim ? claim.via.map((name) => name.toLowerCase()) : [];
  }

  function container(text) {
    for (const view of views.keys()) {
      const claim = views[view].claims.find((each) => !each.region.a && each.region.n === text);
      if (claim) return {view, claim};
    }
    return null;
  }

  function shows(name, offset, view, only) {
    const order = [view, ...views.keys()].slice(0, only ? 1 : undefined);
    for (const each of order) {
      for (const claim of views[each].claims) {
        if (nameOf(claim.region) !== name || offset < claim.offset) continue;
        const address = claim.start + offset - claim.offset;
        const top = address <= claim.last ? topAt(each, address) : null;
        if (top && top.number === claim.number) return {view: each, address};
      }
    }
    return null;
  }

  function list(text, places) {
    const first = places[0];
    const held = first && exactly(first, text) ? null : container(text);
    if (!first && !held) {
      say(`nothing on this map is called ${text}; what is disabled is in the trees only`);
      return;
    }
    if (held) {
      say(`${text} answers nothing itself; it holds others from ${hex(held.claim.start)} to ` +
        `${hex(held.claim.last)} in ${data.views[held.view].title}`);
    } else if (first.layer) {
      say(`${nameOf(first.region)} is hidden wherever it lies`);
      show(first.view);
      clear();
      first.element.classList.add("hit");
      reveal(first.element);
    } else {
      explain(first.view, first.start);
    }
    if (places.length > 1 || (held && places.length)) {
      const items = make("ul");
      for (const place of places.slice(0, 40)) {
        const item = make("li");
        item.append(link(`${hex(place.start)} ${nameOf(place.region)}`,
          `${views[place.view].names[0]}:${hex(place.start)}`));
        const owner = place.region.o.slice(place.region.o.lastIndexOf("/") + 1);
        item.append(make("span", (owner ? ` ${owner}` : "") + (place.layer ? ", hidden" : "") +
          (place.view !== first.view ? `, in ${data.views[place.view].title}` : ""), "faint"));
        items.append(item);
      }
      const more = places.length > 40 ? `, the first 40 of ${places.length}` : "";
      answer.append(make("p", `all that match “${text}”${more}:`, "faint"), items);
    }
  }

  function reply(...parts) {
    const close = make("button", "×", "close");
    close.type = "button";
    close.setAttribute("aria-label", "close");
    close.addEventListener("click", () => { quiet(); clear(); });
    answer.replaceChildren(close, ...parts);
    answer.hidden = false;
    answer.scrollTop = 0;
    document.body.classList.add("asked");
  }

  function quiet() {
    answer.hidden = true;
    document.body.classList.remove("asked");
  }

  function say(text) {
    reply(make("p", text));
    clear();
  }

  function fromHash() {
    let text = location.hash.slice(1);
    try { text = decodeURIComponent(text); } catch { /* an odd % stays as it is */ }
    text = text.trim();
    if (!text) { quiet(); clear(); return; }
    query.value = text;
    find(text);
  }

  // A link must mean the same on whatever tab it is opened: it names the space.
  function asTyped(text) {
    const address = numberOf(text);
    if (!current || address === null || address >= TOP || !topAt(current, address)) return text;
    return `${views[current].names[0]}:${text}`;
  }

  function go(text) {
    const hash = "#" + encodeURIComponent(text.trim());
    if (location.hash === hash) fromHash();
    else location.hash = hash;
  }

  // -- wiring ---------------------------------------------------------------------------

  for (const element of document.querySelectorAll(".b, .gap")) {
    const title = element.querySelector("title");
    element.tipLines = title.textContent.split("\n");
    title.remove(); // the page's own tip takes its place
  }

  function showTip(element, x, y) {
    tip.replaceChildren(...element.tipLines.map((line) => make("div", line)));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const across = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8));
    const down = y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 12) : y + 18;
    tip.style.left = `${across + scrollX}px`;
    tip.style.top = `${down + scrollY}px`;
  }
  function kin(element, on) {
    const number = element && element.dataset.r;
    if (number === undefined || number === null) return;
    for (const each of document.querySelectorAll(`.b[data-r="${Number(number)}"]`)) {
      each.classList.toggle("kin", on);
    }
  }
  const under = (event) => event.target.closest && event.target.closest(".b, .gap");
  let hovered = null;
  document.addEventListener("mousemove", (event) => {
    const element = under(event);
    if (element !== hovered) { kin(hovered, false); kin(element, true); hovered = element; }
    if (element) showTip(element, event.clientX, event.clientY);
    else tip.hidden = true;
  });
  document.addEventListener("mouseleave", () => { tip.hidden = true; });
  document.addEventListener("focusin", (event) => {
    const element = under(event);
    if (!element || !element.matches(":focus-visible")) { tip.hidden = true; return; }
    const box = element.getBoundingClientRect();
    showTip(element, box.left + 30, box.bottom - 14);
  });
  function open(element) {
    const view = panels.indexOf(element.closest(".view"));
    const space = view ? `${views[view].names[0]}:` : "";
    go(space + element.dataset.a);
  }
  document.addEventListener("click", (event) => {
    const mark = event.target.closest && event.target.closest(".overview .mark, .b, .gap");
    if (mark) open(mark);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tip.hidden = true;
    if (event.key === "/" && document.activeElement !== query) {
      event.preventDefault();
      query.focus();
    }
    const element = under(event);
    if (element && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      open(element);
    }
  });

  views.forEach((view, number) => {
    const tab = make("button", data.views[number].title);
    tab.type = "button";
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panels[number].id);
    tab.title = view.names.join(", ");
    tab.addEventListener("click", () => show(number));
    tab.addEventListener("keydown", (event) => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      show((number + step + views.length) % views.length);
      tabs.children[current].focus();
    });
    tabs.append(tab);
    panels[number].setAttribute("role", "tabpanel");
  });
  tabs.hidden = views.length < 2;
  byId("search").hidden = false;
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    go(asTyped(query.value.trim()));
  });
  if (matchMedia("(min-width:1240px)").matches) document.querySelector(".how").open = true;
  addEventListener("hashchange", fromHash);
  show(0);
  fromHash();
})();
