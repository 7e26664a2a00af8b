// Terms and their values, as a list of both.

export function showNumbers(list, numbers) {
  list.replaceChildren(...Object.entries(numbers).map(([term, value]) => {
    const pair = document.createElement("div");
    pair.append(Object.assign(document.createElement("dt"), { textContent: term }));
    pair.append(Object.assign(document.createElement("dd"), { textContent: value }));
    return pair;
  }));
}
