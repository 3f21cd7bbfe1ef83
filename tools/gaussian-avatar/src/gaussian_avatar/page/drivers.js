// What moves the avatar besides its own clip, as a clip of face.js. As gaussian_avatar.driving, which see.

const FULL_LOOK = 0.5 / RADIANS; // degrees of an eye's turn at which eyeLook* is 1
const AXES = [1, 0, 0, 0, -1, 0, 0, 0, -1];

async function clipOf(file, head, content) {
  const name = file.name.toLowerCase();
  try {
    if (name.endsWith(".npz")) return clipOfTrack(await readNpz(await file.arrayBuffer()), head, content);
    if (name.endsWith(".csv")) return clipOfActivations(readCsv(await file.text()), content);
    if (/\.jsonl?$/.test(name)) return clipOfActivations(readJson(await file.text()), content);
  } catch (error) {
    throw new Error(`${file.name} ${error.message}`);
  }
  throw new Error(`${file.name} is none of track.npz, a CSV of Live Link Face, MediaPipe's JSON`);
}

function emptyClip(frames, fps, content, camera) {
  const n = content.expressions;
  return {
    frames,
    fps,
    expressions: n,
    expression: new Float32Array(frames * n),
    turns: new Float32Array(frames * 36),
    eyelids: new Float32Array(frames * 2),
    translation: new Float32Array(frames * 3),
    ...camera,
  };
}

function clipOfTrack(arrays, head, content) {
  const need = ["expression", "R", "t", "neck", "jaw", "eyes", "eyelids", "K", "image_size", "fps"];
  if (need.some((key) => !arrays[key])) throw new Error("is no track of flame-encoder");
  const [frames, given] = arrays.expression.shape,
    get = (key, i, size) => Array.from(arrays[key].values.subarray(i * size, (i + 1) * size));
  if (given > content.expressions) throw new Error(`has ${given} expressions, of another head model`);
  const origin = get("t", 0, 3);
  const camera = { K: get("K", 0, 9), size: get("image_size", 0, 2), origin };
  const clip = emptyClip(frames, arrays.fps.values[0], content, camera);
  for (let i = 0; i < frames; i++) {
    const expression = clip.expression.subarray(i * content.expressions, (i + 1) * content.expressions);
    expression.set(get("expression", i, given));
    const R = multiply(AXES, get("R", i, 9)),
      J = neckJoint(head, expression),
      moved = apply(R, J),
      t = get("t", i, 3);
    clip.turns.set([...multiply(R, get("neck", i, 9)), ...get("jaw", i, 9), ...get("eyes", i, 18)], 36 * i);
    clip.eyelids.set(get("eyelids", i, 2), 2 * i);
    clip.translation.set(
      [0, 1, 2].map((c) => AXES[4 * c] * (t[c] - origin[c]) + moved[c] - J[c]),
      3 * i,
    );
  }
  return clip;
}

function clipOfActivations({ fps, frames }, content) {
  const { names, own } = content;
  if (!names.some((name) => ARKIT.includes(name))) throw new Error("has ARKit's names, this avatar's head has none");
  const clip = emptyClip(frames.length, fps, content, { K: own.K, size: own.size, origin: own.origin });
  frames.forEach(({ values, head, jaw: told, eyes }, i) => {
    const get = (name) => Math.max(0, Math.min(1, values[name] ?? 0));
    const expression = clip.expression.subarray(i * content.expressions, (i + 1) * content.expressions);
    names.forEach((name, column) => {
      expression[column] = get(name);
    });
    const put = (name, value) => {
      expression[names.indexOf(name)] = value;
    };
    let jaw = IDENTITY;
    if (own.jaw) {
      const { opening, opened, forward, aside } = own.jaw,
        aim = get("jawLeft") - get("jawRight");
      const open = told ? told[1] * RADIANS : between(get("jawOpen"), opened, opening),
        way = between(open, opening, aside);
      const side = told ? told[0] * RADIANS : Math.max(-0.3, Math.min(0.3, aim / way));
      jaw = told ? turn(told) : vectorTurn([open, side, 0]);
      const left = {
        jawOpen: between(open, opening, opened),
        jawForward: between(open, opening, forward),
        jawLeft: Math.max(0, side * way),
        jawRight: Math.max(0, -side * way),
      };
      for (const [name, share] of Object.entries(left)) put(name, Math.max(0, get(name) - share));
    }
    if (own.eyelids) {
      clip.eyelids.set([get("eyeBlinkLeft"), get("eyeBlinkRight")], 2 * i);
      put("eyeBlinkLeft", 0);
      put("eyeBlinkRight", 0);
    }
    const look = (side, inwards) => [
      FULL_LOOK * inwards * (get(`eyeLookIn${side}`) - get(`eyeLookOut${side}`)),
      FULL_LOOK * (get(`eyeLookDown${side}`) - get(`eyeLookUp${side}`)),
      0,
    ];
    const [left, right] = eyes ?? [look("Left", -1), look("Right", 1)];
    clip.turns.set([...turn(head), ...jaw, ...turn(left), ...turn(right)], 36 * i);
    clip.translation.set(own.translation, 3 * i);
  });
  return clip;
}

// Where x lies in rising numbers, as NumPy's interp.
function between(x, from, to) {
  let i = 1;
  while (i + 1 < from.length && from[i] < x) i++;
  const share = Math.max(0, Math.min(1, (x - from[i - 1]) / Math.max(from[i] - from[i - 1], 1e-9)));
  return to[i - 1] + share * (to[i] - to[i - 1]);
}

// The change from the driver's rest added to the avatar's.
function relative(clip, content) {
  const { own, neutral, activations } = content,
    { frames, expressions: n } = clip;
  const column = (values, size, c) => Array.from({ length: frames }, (_, i) => values[size * i + c]);
  const rest = Array.from({ length: n }, (_, c) => quantile(column(clip.expression, n, c), activations ? 0.1 : 0.5));
  const lids = [0, 1].map((c) => quantile(column(clip.eyelids, 2, c), 0.1));
  const turned = (joint, i) => Array.from(clip.turns.subarray(36 * i + 9 * joint, 36 * i + 9 * joint + 9));
  const turns = [0, 1, 2, 3].map((joint) => middleTurn(Array.from({ length: frames }, (_, i) => turned(joint, i))));
  const across = turns.map((R, joint) => multiply(neutral.turns[joint], transposed(R)));
  const place = [0, 1, 2].map((c) => quantile(column(clip.translation, 3, c), 0.5));
  const changed = emptyClip(frames, clip.fps, content, { K: own.K, size: own.size, origin: own.origin });
  for (let i = 0; i < frames; i++) {
    for (let c = 0; c < n; c++) {
      const value = clip.expression[n * i + c] - rest[c] + neutral.expression[c];
      changed.expression[n * i + c] = activations ? Math.max(0, Math.min(1, value)) : value;
    }
    for (const c of [0, 1])
      changed.eyelids[2 * i + c] = Math.max(0, Math.min(1, clip.eyelids[2 * i + c] - lids[c] + neutral.eyelids[c]));
    for (let joint = 0; joint < 4; joint++)
      changed.turns.set(multiply(across[joint], turned(joint, i)), 36 * i + 9 * joint);
    const moved = apply(
      across[0],
      [0, 1, 2].map((c) => clip.translation[3 * i + c] - place[c]),
    );
    changed.translation.set(
      moved.map((value, c) => value + neutral.translation[c]),
      3 * i,
    );
  }
  return changed;
}

function quantile(values, share) {
  const sorted = Float64Array.from(values).sort(),
    at = share * (sorted.length - 1),
    i = Math.floor(at);
  return sorted[i] + (at - i) * ((sorted[i + 1] ?? sorted[i]) - sorted[i]);
}

// The median of turns, as rotation vectors about the first.
function middleTurn(turns) {
  const back = transposed(turns[0]),
    vectors = turns.map((R) => turnVector(multiply(back, R)));
  return multiply(turns[0], vectorTurn([0, 1, 2].map((c) => lowerMedian(vectors.map((vector) => vector[c])))));
}

function lowerMedian(values) {
  // of an even number the lower, as torch has it
  return Float64Array.from(values).sort()[(values.length - 1) >> 1];
}

// Files dropped on the page or chosen in its panel.
function dropping(open) {
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle("dropping", kind === "dragenter" || kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
    });
  }
}
