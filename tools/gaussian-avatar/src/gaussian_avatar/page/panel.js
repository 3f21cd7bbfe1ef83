// Sliders and buttons.

const MAIN = [
  "jawOpen",
  "mouthSmile",
  "mouthFrown",
  "mouthFunnel",
  "mouthPucker",
  "mouthClose",
  "mouthLeft",
  "mouthRight",
  "mouthStretch",
  "mouthUpperUp",
  "mouthLowerDown",
  "cheekPuff",
  "noseSneer",
  "browInnerUp",
  "browDown",
  "browOuterUp",
  "eyeBlinkLeft",
  "eyeBlinkRight",
  "eyeWide",
  "eyeSquint",
];
const REACH = { headYaw: 60, headPitch: 40, headRoll: 40, gazeYaw: 30, gazePitch: 25 };

// Fill the form; what it answers is called with each frame that is shown.
function controls(form, api, content, open) {
  const { names } = content,
    sliders = new Map();
  const add = (parent, kind, properties) => parent.appendChild(Object.assign(document.createElement(kind), properties));
  const button = (text, action) => add(form, "button", { type: "button", textContent: text, onclick: action });
  const slider = (parent, name, least, most, step, act) => {
    const label = add(parent, "label", { textContent: name, title: name });
    const input = add(label, "input", { type: "range", name, min: least, max: most, step, value: 0 });
    input.oninput = () => act(Number(input.value));
    return { label, input };
  };
  const play = button("Pause", () => (api.playing ? api.pause() : api.play()));
  const follow = button("Rest", () => {
    api.follow = !api.follow;
  });
  button("Reset", () => api.reset());
  button("Save picture", () => {
    add(form, "a", { href: api.snapshot(), download: "avatar.png" }).click();
  });
  const chosen = add(form, "input", { type: "file", accept: ".npz,.csv,.json,.jsonl", hidden: true });
  chosen.onchange = () => chosen.files.length && open(chosen.files[0]);
  button("Open clip", () => chosen.click());
  const label = add(form, "label", {
    className: "check",
    title: "of another person's clip: only what changes from rest",
  });
  const check = add(label, "input", { type: "checkbox" });
  label.append("relative");
  check.onchange = () => {
    api.transfer = check.checked ? "relative" : "absolute";
  };
  const frame = slider(form, "frame", 0, Math.max(1, api.frames - 1), 1, (value) => {
    api.pause();
    api.frame = value;
  });
  const group = (title, list, open, least, reach) => {
    const box = add(form, "details", { open });
    add(box, "summary", { textContent: title });
    for (const name of list) {
      const most = REACH[name] ?? reach;
      sliders.set(
        name,
        slider(box, name, name in REACH ? -most : least, most, name in REACH ? 0.5 : 0.01, (value) =>
          api.set({ [name]: value }),
        ),
      );
    }
  };
  group("Head", Object.keys(REACH), true, -1, 1);
  if (content.activations) {
    const main = MAIN.filter((name) => known(names, name).length);
    const rest = names.filter((name) => !main.some((one) => known(names, one).includes(name)));
    group("Face", main, true, 0, 1);
    if (rest.length) group("More", rest, false, 0, 1);
  } else {
    group("Face", ["jawOpen", "eyeBlinkLeft", "eyeBlinkRight"], true, 0, 1);
    group("Expressions", names.slice(0, 20), true, -3, 3);
  }
  return (shown, pins) => {
    play.textContent = api.playing ? "Pause" : "Play";
    follow.textContent = api.follow ? "Rest" : "Clip";
    frame.input.max = Math.max(1, api.frames - 1);
    frame.input.value = api.frame;
    for (const [name, { label, input }] of sliders) {
      const stands = known(names, name);
      label.classList.toggle(
        "pinned",
        stands.some((one) => pins.has(one)),
      );
      if (input !== document.activeElement || !pins.has(stands[0])) input.value = valueOf(shown, content, stands[0]);
    }
  };
}
