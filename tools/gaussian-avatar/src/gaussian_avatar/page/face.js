// What moves the avatar: a frame of a clip, and values that take the place of the frame's own.
//
// A clip in the avatar's world (gaussian_avatar.motions): expression (N, E), turns (N, 4, 9) of neck, jaw, left and
// right eye, eyelids (N, 2), translation (N, 3); fps, and the camera that saw it: K (9), size, origin.

const OPEN_JAW = 25; // degrees, for heads whose jaw has a joint only
const BLINKS = ["eyeBlinkLeft", "eyeBlinkRight"];
const HEAD = { headYaw: 0, headPitch: 1, headRoll: 2 };
const GAZE = { gazeYaw: 0, gazePitch: 1 };

function frameOf(clip, index) {
  const { expressions: n } = clip,
    part = (values, size) => Array.from(values.subarray(index * size, (index + 1) * size));
  return {
    expression: part(clip.expression, n),
    turns: [0, 1, 2, 3].map((joint) =>
      Array.from(clip.turns.subarray(36 * index + 9 * joint, 36 * index + 9 * joint + 9)),
    ),
    eyelids: part(clip.eyelids, 2),
    translation: part(clip.translation, 3),
  };
}

// The face at rest, the head held as in a frame.
function resting(clip, index) {
  const frame = frameOf(clip, index);
  frame.expression.fill(0);
  frame.turns.fill(IDENTITY, 1);
  frame.eyelids = [0, 0];
  return frame;
}

// The values that a name stands for: an expression, both sides of one, a turn of head or gaze in degrees.
function known(names, name) {
  if (name in HEAD || name in GAZE) return [name];
  const sides = [name, `${name}Left`, `${name}Right`].filter((side) => names.includes(side));
  if (sides.length) return sides;
  if (name === "jawOpen" || BLINKS.includes(name)) return [name];
  return name === "eyeBlink" ? BLINKS : [];
}

// A frame with pinned values in the place of its own. Jaw and eyelids go where the avatar's own clip has them: the
// joint and the lids (content.own), else the expressions.
function pinned(frame, { names, own }, pins) {
  const { expression, eyelids } = frame,
    turns = frame.turns.slice();
  const given = (table) => Object.keys(table).filter((name) => pins.has(name));
  for (const [name, value] of pins) {
    const column = names.indexOf(name),
      lid = BLINKS.indexOf(name);
    let left = value;
    if (name === "jawOpen" && (column < 0 || own.jaw)) {
      turns[1] = vectorTurn([
        own.jaw ? between(value, own.jaw.opened, own.jaw.opening) : OPEN_JAW * RADIANS * value,
        0,
        0,
      ]);
      left = 0;
    } else if (name === "jawOpen") {
      turns[1] = IDENTITY;
    }
    if (lid >= 0) {
      eyelids[lid] = column < 0 || own.eyelids ? value : 0;
      if (own.eyelids) left = 0;
    }
    if (column >= 0) expression[column] = left;
  }
  if (given(HEAD).length) {
    const way = angles(turns[0]);
    for (const name of given(HEAD)) way[HEAD[name]] = pins.get(name);
    turns[0] = turn(way);
  }
  if (given(GAZE).length) {
    for (const eye of [2, 3]) {
      const way = angles(turns[eye]);
      for (const name of given(GAZE)) way[GAZE[name]] = pins.get(name);
      turns[eye] = turn(way);
    }
  }
  return { ...frame, turns };
}

// The value that a frame has for a name.
function valueOf(frame, { names, own }, name) {
  if (name in HEAD) return angles(frame.turns[0])[HEAD[name]];
  if (name in GAZE) return angles(frame.turns[2])[GAZE[name]];
  const column = names.indexOf(name),
    said = column < 0 ? 0 : frame.expression[column],
    lid = BLINKS.indexOf(name);
  if (lid >= 0) return said + frame.eyelids[lid];
  if (name !== "jawOpen") return said;
  const open = turnVector(frame.turns[1])[0];
  return said + (own.jaw ? between(open, own.jaw.opening, own.jaw.opened) : open / RADIANS / OPEN_JAW);
}

// The network's input: expression, the first two rows of each turn, eyelids, translation.
function inputOf(frame, expressions) {
  const input = Array.from({ length: expressions }, (_, i) => frame.expression[i] ?? 0);
  for (const R of frame.turns) input.push(...R.slice(0, 6));
  return [...input, ...frame.eyelids, ...frame.translation];
}
