// 3x3 matrices as arrays of nine, row by row. Angles in degrees; a turn is Ry(yaw) Rx(pitch) Rz(roll).

const IDENTITY = [1, 0, 0, 0, 1, 0, 0, 0, 1];
const RADIANS = Math.PI / 180;

function multiply(a, b) {
  const c = new Array(9);
  for (let i = 0; i < 3; i++) {
    for (let j = 0; j < 3; j++) c[3 * i + j] = a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j];
  }
  return c;
}

function apply(a, x) {
  return [0, 1, 2].map((i) => a[3 * i] * x[0] + a[3 * i + 1] * x[1] + a[3 * i + 2] * x[2]);
}

function transposed(a) {
  return [a[0], a[3], a[6], a[1], a[4], a[7], a[2], a[5], a[8]];
}

function turn([yaw, pitch, roll]) {
  const [cy, cx, cz] = [yaw, pitch, roll].map((angle) => Math.cos(angle * RADIANS));
  const [sy, sx, sz] = [yaw, pitch, roll].map((angle) => Math.sin(angle * RADIANS));
  return [
    cy * cz + sy * sx * sz,
    sy * sx * cz - cy * sz,
    sy * cx,
    cx * sz,
    cx * cz,
    -sx,
    cy * sx * sz - sy * cz,
    sy * sz + cy * sx * cz,
    cy * cx,
  ];
}

function angles(a) {
  const pitch = Math.asin(Math.max(-1, Math.min(1, -a[5])));
  return [Math.atan2(a[2], a[8]), pitch, Math.atan2(a[3], a[4])].map((angle) => angle / RADIANS);
}

// A rotation vector (radians) to a matrix, and back; half turns are not met here.
function vectorTurn(vector) {
  const angle = Math.hypot(...vector),
    [x, y, z] = vector.map((value) => value / Math.max(angle, 1e-12));
  const c = Math.cos(angle),
    s = Math.sin(angle),
    k = 1 - c;
  return [
    c + k * x * x,
    k * x * y - s * z,
    k * x * z + s * y,
    k * x * y + s * z,
    c + k * y * y,
    k * y * z - s * x,
    k * x * z - s * y,
    k * y * z + s * x,
    c + k * z * z,
  ];
}

function turnVector(R) {
  const axis = [R[7] - R[5], R[2] - R[6], R[3] - R[1]],
    twice = Math.hypot(...axis);
  const angle = Math.atan2(twice, R[0] + R[4] + R[8] - 1);
  return axis.map((value) => (twice < 1e-9 ? value / 2 : (value * angle) / twice));
}
