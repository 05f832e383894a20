"use strict";
// The browser of responses. Its filters live in the address after "#", as in
// #method=base&verdict=REFUSED&page=2, so that a view, or one response, can be linked to.
// Text from outside goes into the page through textContent only.
(function () {
  const CHOICES = ["method", "style", "kind", "category", "judge", "verdict"];
  const TYPED = ["id", "text"];
  const SEARCHED = ["question", "prompt", "answer"];
  const DISAGREE = "judges disagree";
  const PAGE_SIZE = 20;

  const data = JSON.parse(byId("data").textContent);
  const responses = data.rows.map(function (row) {
    const response = {};
    data.fields.forEach(function (name, place) {
      response[name] = name === "rulings" ? row[place].map(ruling) : data.strings[row[place]];
    });
    return response;
  });
  let page = 0;

  function byId(id) { return document.getElementById(id); }

  function ruling(numbers) {
    const [judge, verdict, remark] = numbers.map((number) => data.strings[number]);
    return { judge, verdict, remark };
  }

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  // An input drops the line breaks of what is put into it.
  function oneLine(text) { return text.replace(/[\r\n]/g, ""); }

  function valuesOf(name) {
    const found = new Set();
    for (const response of responses) {
      if (name === "judge" || name === "verdict") {
        for (const each of response.rulings) found.add(each[name]);
      } else if (response[name]) {
        found.add(response[name]);
      }
    }
    if (name === "verdict" && valuesOf("judge").size > 1) found.add(DISAGREE);
    return found;
  }

  function addOption(select, value) {
    const option = element("option", value);
    option.value = value;
    select.append(option);
  }

  function verdictFits(response, judge, verdict) {
    const heard = response.rulings.filter((each) => !judge || each.judge === judge);
    if (verdict === DISAGREE) return new Set(heard.map((each) => each.verdict)).size > 1;
    return heard.some((each) => !verdict || each.verdict === verdict);
  }

  function chosen() {
    const wanted = {};
    for (const name of CHOICES.concat(TYPED)) wanted[name] = byId(name).value;
    const text = wanted.text.toLowerCase();
    return responses.filter(function (response) {
      for (const name of ["method", "style", "kind", "category", "id"]) {
        if (wanted[name] && oneLine(response[name]) !== oneLine(wanted[name])) return false;
      }
      if ((wanted.judge || wanted.verdict) &&
          !verdictFits(response, wanted.judge, wanted.verdict)) return false;
      return !text || SEARCHED.some((name) => response[name].toLowerCase().includes(text));
    });
  }

  function card(response) {
    const made = element("article");
    const verdicts = response.rulings.map((each) => each.verdict);
    if (verdicts.includes("ATTACK_SUCCEEDED")) made.className = "attacked";
    else if (verdicts.includes("REFUSED")) made.className = "refused";
    const link = new URLSearchParams(
      { id: response.id, method: response.method, style: response.style });
    const title = element("h3");
    const anchor = element("a", response.id || "(no id)");
    anchor.href = "#" + link;
    const about = ["method", "style", "kind", "category"].map((name) => response[name]);
    title.append(anchor, " " + about.filter(Boolean).join(" · "));
    made.append(title);
    for (const each of response.rulings) {
      const line = element("p", each.judge + ": ");
      line.append(element("strong", each.verdict), each.remark ? " (" + each.remark + ")" : "");
      made.append(line);
    }
    addText(made, "question", response.question);
    if (response.prompt !== response.question) addText(made, "as asked", response.prompt);
    addText(made, "answer", response.answer);
    made.append(element("p", response.ending, "small"));
    return made;
  }

  function addText(made, name, text) {
    if (!text && name !== "answer") return;
    made.append(element("p", name, "small"), element("pre", text));
  }

  function render() {
    const found = chosen();
    const pages = Math.max(1, Math.ceil(found.length / PAGE_SIZE));
    page = Math.min(Math.max(0, page), pages - 1);
    byId("count").textContent = found.length + " of " + responses.length +
      " responses, page " + (page + 1) + " of " + pages;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
    const start = page * PAGE_SIZE;
    byId("list").replaceChildren(...found.slice(start, start + PAGE_SIZE).map(card));
  }

  function readAddress() {
    const given = location.hash.slice(1);
    if (given && !given.includes("=")) return; // a link to a heading
    const parameters = new URLSearchParams(given);
    for (const name of CHOICES.concat(TYPED)) {
      const control = byId(name), value = parameters.get(name) || "";
      control.value = value;
      if (CHOICES.includes(name) && control.value !== value) { // not in this run: show that nothing fits
        addOption(control, value);
        control.value = value;
      }
    }
    page = (parseInt(parameters.get("page"), 10) || 1) - 1;
    render();
    if (given) byId("responses").scrollIntoView();
  }

  function writeAddress() {
    const parameters = new URLSearchParams();
    for (const name of CHOICES.concat(TYPED)) {
      if (byId(name).value) parameters.set(name, byId(name).value);
    }
    if (page) parameters.set("page", page + 1);
    history.replaceState(null, "", "#" + (parameters.toString() || "responses"));
  }

  function show(newPage) {
    page = newPage;
    render();
    writeAddress();
  }

  for (const name of CHOICES) {
    for (const value of valuesOf(name)) addOption(byId(name), value);
    byId(name).addEventListener("change", () => show(0));
  }
  let waiting = 0;
  for (const name of TYPED) {
    byId(name).addEventListener("input", function () {
      clearTimeout(waiting);
      waiting = setTimeout(() => show(0), 200);
    });
  }
  byId("previous").addEventListener("click", () => show(page - 1));
  byId("next").addEventListener("click", () => show(page + 1));
  byId("clear").addEventListener("click", function () {
    for (const name of CHOICES.concat(TYPED)) byId(name).value = "";
    show(0);
  });
  window.addEventListener("hashchange", readAddress);
  byId("controls").hidden = false;
  render();
  readAddress();
})();
