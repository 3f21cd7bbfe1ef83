// The camera: that of the clip, turned about the head's middle, nearer or farther, fitted to the canvas.

function cameraOf(clip, orbit, centre, width, height) {
  const [w, h] = clip.size,
    scale = Math.min(width / w, height / h);
  const about = turn([orbit.yaw, orbit.pitch, 0]);
  const flipped = [0, 1, 2].map((row) => (row === 0 ? 1 : -1)); // world axes to OpenCV's
  const moved = apply(about, centre);
  const view = new Float32Array(16);
  for (let row = 0; row < 3; row++) {
    for (let column = 0; column < 3; column++) view[4 * row + column] = flipped[row] * about[3 * row + column];
    view[4 * row + 3] = flipped[row] * (centre[row] - moved[row]) + clip.origin[row];
  }
  view[15] = 1;
  const depth = -centre[2] + clip.origin[2];
  view[11] += (orbit.distance - 1) * depth;
  const eye = [0, 1, 2].map((c) => -(view[c] * view[3] + view[4 + c] * view[7] + view[8 + c] * view[11]));
  const { K } = clip;
  const lens = [
    scale * K[0],
    scale * K[4],
    scale * K[2] + (width - scale * w) / 2,
    scale * K[5] + (height - scale * h) / 2,
  ];
  return { view, lens, eye, width, height };
}

function middleOf(vertices) {
  const centre = [0, 0, 0],
    n = vertices.length / 3;
  for (let i = 0; i < vertices.length; i++) centre[i % 3] += vertices[i] / n;
  return centre;
}

// Drag turns, the wheel and two fingers go nearer.
function listen(canvas, orbit, changed) {
  const fingers = new Map();
  const apart = () => {
    const [a, b] = fingers.values();
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  const nearer = (factor) => {
    orbit.distance = Math.max(0.2, Math.min(5, orbit.distance * factor));
    changed();
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const gap = fingers.size === 2 ? apart() : 0,
      now = { x: event.clientX, y: event.clientY };
    fingers.set(event.pointerId, now);
    if (fingers.size === 2) return nearer(gap / Math.max(apart(), 1));
    orbit.yaw += 0.4 * (now.x - before.x);
    orbit.pitch = Math.max(-85, Math.min(85, orbit.pitch + 0.4 * (now.y - before.y)));
    changed();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      nearer(Math.exp(event.deltaY / 1000));
    },
    { passive: false },
  );
  canvas.addEventListener("dblclick", () => {
    Object.assign(orbit, { yaw: 0, pitch: 0, distance: 1 });
    changed();
  });
}
