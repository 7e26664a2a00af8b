// Settings in the address, behind the #: a link brings them back, and they are not sent to the server.

const read = () => new URLSearchParams(location.hash.slice(1));

function write(name, value) {
  const settings = read();
  if (value) settings.set(name, value);
  else settings.delete(name);
  history.replaceState(null, "", settings.size ? `#${settings}` : location.pathname + location.search);
}

export const setting = (name) => read().get(name);
export const keep = write;

// Fields that say `data-setting` start as the address has them, and it follows them.
export function keepFields() {
  for (const field of document.querySelectorAll("[data-setting]")) {
    const name = field.dataset.setting;
    if (setting(name) !== null) field.value = setting(name);
    field.addEventListener("change", () => write(name, field.value));
  }
}
