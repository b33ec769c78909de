// A drop zone for folders: Gradio's own forgets which folder a file was in.
const zone = element.querySelector(".drop");
const note = element.querySelector(".note");
const inputs = [...element.querySelectorAll("input")];
const together = 50;

async function within(entry) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    return [[entry.fullPath.replace(/^\//, ""), file]];
  }
  const reader = entry.createReader();
  const found = [];
  // A reader hands over a part at a time, and then nothing.
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (some.length === 0) return found;
    for (const one of some) found.push(...(await within(one)));
  }
}

async function send(files) {
  files = files.filter(([name]) => props.suffixes.some((suffix) => name.toLowerCase().endsWith(suffix)));
  const size = files.reduce((sum, [, file]) => sum + file.size, 0);
  if (files.length === 0) return (note.textContent = "There is nothing in it that is understood.");
  if (files.length > props.most || size > props.bytes)
    return (note.textContent = `That is too much: ${files.length} files, ${Math.ceil(size / 2 ** 20)} MB. At most ${props.limits}.`);
  const sent = [];
  inputs.forEach((input) => (input.disabled = true));
  try {
    for (let first = 0; first < files.length; first += together) {
      note.textContent = `Uploading: ${first} of ${files.length} files`;
      const some = files.slice(first, first + together);
      const form = new FormData();
      some.forEach(([, file]) => form.append("files", file, file.name));
      const reply = await fetch("upload", { method: "POST", body: form });
      if (!reply.ok) throw new Error(await reply.text());
      (await reply.json()).forEach((path, i) => sent.push([some[i][0], path]));
    }
    note.textContent = `Uploaded: ${files.length} file${files.length === 1 ? "" : "s"}`;
    trigger("upload", { files: sent });
  } catch (error) {
    note.textContent = `The upload failed: ${error.message}`;
  } finally {
    inputs.forEach((input) => ((input.disabled = false), (input.value = "")));
  }
}

inputs.forEach((input) =>
  input.addEventListener("change", () => {
    if (input.files.length) send([...input.files].map((file) => [file.webkitRelativePath || file.name, file]));
  }),
);
zone.addEventListener("dragover", (event) => {
  event.preventDefault();
  zone.classList.add("over");
});
zone.addEventListener("dragleave", () => zone.classList.remove("over"));
zone.addEventListener("drop", async (event) => {
  event.preventDefault();
  zone.classList.remove("over");
  // The list of items is gone once this function waits.
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  const found = [];
  try {
    for (const entry of entries) found.push(...(await within(entry)));
  } catch (error) {
    return (note.textContent = `The folder cannot be read: ${error.message}`);
  }
  send(found);
});
