// The page: sliders, clip, dropped files, and window.avatar for those who embed it.
//
// #bare hides the controls, #frame=7 stops at a frame, #background=none is transparent, #background=ffffff a colour.

async function start() {
  const options = new URLSearchParams(location.hash.slice(1));
  const content = await unpack(document.getElementById("content").textContent);
  document.getElementById("content").remove();
  const canvas = document.getElementById("view"),
    note = document.getElementById("note");
  document.body.classList.toggle("bare", options.has("bare"));
  const head = newHead(content),
    gaussians = newGaussians(content);
  let renderer = newRenderer(canvas, gaussians);
  const state = {
    clip: content.clip,
    position: Number(options.get("frame") ?? 0),
    playing: !options.has("frame"),
    follow: true,
    pins: new Map(),
    orbit: { yaw: 0, pitch: 0, distance: 1 },
    background: colourOf(options.get("background") ?? "18181c"),
    transfer: "absolute",
    dirty: true,
  };
  Object.assign(state.clip, clipArrays(content));
  const rest = state.clip,
    names = content.names;
  const touch = () => {
    state.dirty = true;
  };
  const frameNow = () => {
    const last = state.clip.frames - 1,
      index = Math.max(0, Math.min(last, Math.floor(state.position)));
    return pinned(state.follow ? frameOf(state.clip, index) : resting(rest, content.frontal), content, state.pins);
  };
  let centre = null,
    speed = 0,
    drawn = 0;
  const render = (width, height) => {
    [canvas.width, canvas.height] = [width, height];
    const frame = frameNow();
    const vertices = pose(head, frame.expression, frame.turns, frame.eyelids, frame.translation);
    centre ??= middleOf(vertices);
    const camera = cameraOf(state.follow ? state.clip : rest, state.orbit, centre, width, height);
    const weights = blendWeights(gaussians, inputOf(frame, content.inputExpressions));
    faceFrames(gaussians, vertices);
    attach(gaussians, vertices, weights, camera.eye);
    const count = sort(gaussians, camera.view);
    draw(renderer, weights, camera, count, state.background);
    return frame;
  };
  const api = {
    names,
    content: { gaussians: gaussians.n, title: document.title },
    set(values) {
      for (const [name, value] of Object.entries(values)) {
        const stands = known(names, name);
        if (!stands.length)
          throw new Error(`${name} is none of ${[...names, ...Object.keys(HEAD), ...Object.keys(GAZE)].join(" ")}`);
        for (const one of stands) value === null ? state.pins.delete(one) : state.pins.set(one, Number(value));
      }
      touch();
    },
    reset() {
      state.pins.clear();
      touch();
    },
    play() {
      state.playing = true;
    },
    pause() {
      state.playing = false;
    },
    orbit(yaw, pitch = 0, distance = 1) {
      Object.assign(state.orbit, { yaw, pitch, distance });
      touch();
    },
    // Follow a File: track.npz, a CSV of Live Link Face, MediaPipe's JSON; transfer: "absolute" or "relative".
    async load(file, transfer = state.transfer) {
      const found = await clipOf(file, head, content),
        clip = transfer === "relative" ? relative(found, content) : found;
      Object.assign(state, { clip, position: 0, playing: true, follow: true });
      touch();
    },
    get transfer() {
      return state.transfer;
    },
    set transfer(kind) {
      state.transfer = kind === "relative" ? "relative" : "absolute";
    },
    // A PNG of the frame as the page shows it, as a data URL.
    snapshot(width = canvas.width, height = canvas.height) {
      render(width, height);
      const picture = canvas.toDataURL("image/png");
      touch();
      return picture;
    },
    get frames() {
      return state.clip.frames;
    },
    get frame() {
      return Math.floor(state.position);
    },
    set frame(index) {
      state.position = Math.max(0, Math.min(state.clip.frames - 1, Number(index) || 0));
      touch();
    },
    get playing() {
      return state.playing;
    },
    get follow() {
      return state.follow;
    },
    set follow(yes) {
      state.follow = Boolean(yes);
      touch();
    },
    get background() {
      return state.background;
    },
    set background(colour) {
      state.background = colourOf(colour);
      touch();
    },
    get framesPerSecond() {
      return speed;
    }, // of pictures, in the last second
  };
  listen(canvas, state.orbit, touch);
  // A phone takes the GPU away from a page in the background.
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => {
    renderer = newRenderer(canvas, gaussians);
    touch();
  });
  new ResizeObserver(touch).observe(canvas);
  addEventListener("message", (event) => {
    if (event.data?.set) api.set(event.data.set);
  });
  const said = (error) => {
    note.classList.toggle("error", Boolean(error));
    note.textContent = error?.message ?? "";
    dispatchEvent(new CustomEvent("avatarclip", { detail: error?.message ?? null }));
  };
  const open = (file) => api.load(file).then(() => said(null), said);
  dropping(open);
  const panel = options.has("bare") ? null : controls(document.getElementById("panel"), api, content, open);
  note.textContent = "";

  let before = performance.now(),
    shown = 0,
    since = before,
    pace = sharpened();
  const loop = (now) => {
    const passed = now - before;
    before = now;
    if (state.playing && state.follow && state.clip.frames > 1) {
      state.position = (state.position + (Math.min(passed, 250) / 1000) * state.clip.fps) % state.clip.frames;
      touch();
    }
    const scale = pace(state.dirty, passed) * Math.min(devicePixelRatio || 1, 2);
    if ((state.dirty || scale !== drawn) && canvas.clientWidth > 0) {
      state.dirty = false;
      drawn = scale;
      const frame = render(Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale));
      panel?.(frame, state.pins);
      shown += 1;
    }
    if (now - since > 1000) {
      speed = Math.round((shown / (now - since)) * 10000) / 10;
      if (!note.classList.contains("error"))
        note.textContent = shown > 1 ? `${Math.round(speed)} pictures a second` : "";
      [shown, since] = [0, now];
    }
    requestAnimationFrame(loop);
  };
  requestAnimationFrame(loop);
  return api;
}

// The share of the full resolution that a machine has time for while something moves, told in each turn of the loop
// whether it does and how long the last one took; all of it when it rests.
function sharpened() {
  let share = 1,
    slow = 20,
    still = 0;
  return (moving, milliseconds) => {
    still = moving ? 0 : still + milliseconds;
    if (!moving) return still > 150 ? 1 : share;
    slow += 0.25 * (Math.min(milliseconds, 400) - slow);
    if (slow > 45) share = Math.max(0.45, share * 0.93);
    else if (slow < 25) share = Math.min(1, share * 1.05);
    return share;
  };
}

function clipArrays(content) {
  return {
    expression: content.clipExpression,
    turns: content.clipTurns,
    eyelids: content.clipEyelids,
    translation: content.clipTranslation,
  };
}

// "none", six digits, or numbers of 0 to 1.
function colourOf(given) {
  if (given === null || given === "none") return [0, 0, 0, 0];
  if (Array.isArray(given)) return [...given.slice(0, 3).map(Number), 1];
  return [1, 3, 5].map((i) => parseInt(`#${given.replace("#", "")}`.slice(i, i + 2), 16) / 255 || 0).concat(1);
}

window.avatar = {};
window.avatar.ready = start().then(
  (api) => Object.defineProperties(window.avatar, Object.getOwnPropertyDescriptors(api)),
  (error) => {
    const note = document.getElementById("note");
    note.classList.add("error");
    note.textContent = String(error.message ?? error);
    throw error;
  },
);
