// Gaussians on the posed head: their places and order here, their shapes and colours on the GPU (renderer.js).
// As gaussian_avatar.avatars.deform and attachment.py, which see.

function newGaussians(content) {
  const { gaussians: n, basis, layers, faces } = content;
  return {
    ...content,
    n,
    basis,
    layers: layers.map(([inputs, outputs]) => ({ inputs, outputs })),
    moves: byGaussian(content.offsetBasis, basis, n),
    means: new Float32Array(4 * n), // place, and the share of the opacity that is left where the surface turns away
    frames: new Float32Array(9 * faces),
    faceTurns: new Float32Array(4 * faces),
    keys: new Uint16Array(n),
    depths: new Float32Array(n),
    seen: new Uint32Array(n),
    order: new Uint32Array(n),
    opacities: content.opacityLogits.map((logit) => 1 / (1 + Math.exp(-logit))),
    buckets: new Uint32Array(65537),
  };
}

// (basis, n, 3) to (n, basis, 3): what is added up lies side by side.
function byGaussian(values, basis, n) {
  const turned = new values.constructor(values.length);
  for (let k = 0; k < basis; k++) {
    for (let i = 0; i < n; i++)
      for (let c = 0; c < 3; c++) turned[(i * basis + k) * 3 + c] = values[(k * n + i) * 3 + c];
  }
  return turned;
}

// The network: blendshape input, no further than the avatar's own clip goes, to the weights of the basis.
function blendWeights(g, input) {
  let values = input.map((value, i) => Math.max(g.inputRange[0][i], Math.min(g.inputRange[1][i], value))),
    at = 0;
  g.layers.forEach(({ inputs, outputs }, layer) => {
    const next = new Float32Array(outputs);
    const biases = at + inputs * outputs;
    for (let o = 0; o < outputs; o++) {
      let sum = g.network[biases + o];
      for (let i = 0; i < inputs; i++) sum += g.network[at + o * inputs + i] * values[i];
      next[o] = layer + 1 < g.layers.length ? Math.max(0, sum) : sum;
    }
    at = biases + outputs;
    values = next;
  });
  return values;
}

// Tangent, bitangent and normal of each triangle in use, as columns, and their quaternions wxyz. A quaternion's square
// is how much larger Gaussians get with the triangle, 1 where they stay as they are.
function faceFrames(g, v) {
  const { corners, edges, extents, frames, faceTurns } = g;
  for (let f = 0; f < corners.length / 3; f++) {
    const i = 3 * corners[3 * f],
      j = 3 * corners[3 * f + 1],
      k = 3 * corners[3 * f + 2],
      R = 9 * f,
      uv = 5 * f;
    const ax = v[j] - v[i],
      ay = v[j + 1] - v[i + 1],
      az = v[j + 2] - v[i + 2];
    const bx = v[k] - v[i],
      by = v[k + 1] - v[i + 1],
      bz = v[k + 2] - v[i + 2];
    const u1 = edges[uv],
      v1 = edges[uv + 1],
      u2 = edges[uv + 2],
      v2 = edges[uv + 3],
      sign = edges[uv + 4];
    column(frames, R, (ax * v2 - bx * v1) * sign, (ay * v2 - by * v1) * sign, (az * v2 - bz * v1) * sign);
    column(frames, R + 1, bx * u1 - ax * u2, by * u1 - ay * u2, bz * u1 - az * u2);
    const nx = ay * bz - az * by,
      ny = az * bx - ax * bz,
      nz = ax * by - ay * bx;
    column(frames, R + 2, nx, ny, nz);
    const [least, most] = g.stretch;
    const grown = extents ? Math.sqrt(Math.hypot(nx, ny, nz) / 2) / Math.max(extents[f], 1e-9) : 1;
    quaternion(frames, R, faceTurns, 4 * f, Math.sqrt(Math.max(least, Math.min(most, grown))));
  }
}

function column(R, at, x, y, z) {
  const scale = 1 / Math.max(Math.sqrt(x * x + y * y + z * z), 1e-18);
  R[at] = x * scale;
  R[at + 3] = y * scale;
  R[at + 6] = z * scale;
}

// Markley 2008, as roma has it: of four vectors proportional to q, the one whose own entry is largest.
function quaternion(R, r, q, at, length) {
  const a = R[r],
    b = R[r + 4],
    c = R[r + 8];
  const w = 1 + a + b + c,
    x = 1 + a - b - c,
    y = 1 - a + b - c,
    z = 1 - a - b + c;
  const yz = R[r + 7] - R[r + 5],
    zx = R[r + 2] - R[r + 6],
    xy = R[r + 3] - R[r + 1];
  const sx = R[r + 7] + R[r + 5],
    sy = R[r + 2] + R[r + 6],
    sz = R[r + 3] + R[r + 1];
  let found;
  if (w >= x && w >= y && w >= z) found = [w, yz, zx, xy];
  else if (x >= y && x >= z) found = [yz, x, sz, sy];
  else if (y >= z) found = [zx, sz, y, sx];
  else found = [xy, sy, sx, z];
  const scale = length / Math.hypot(...found);
  for (let i = 0; i < 4; i++) q[at + i] = found[i] * scale;
}

// Places of all Gaussians from the posed vertices and the weights of the basis; eye: the camera's place.
function attach(g, vertices, weights, eye) {
  const { n, means, frames, corners, faceOf, bary, offsets, moves, basis } = g;
  const amounts = g.offsetScales.map((scale, i) => scale * weights[Math.floor(i / 3)]);
  for (let i = 0; i < n; i++) {
    const f = faceOf[i],
      R = 9 * f;
    const a = 3 * corners[3 * f],
      b = 3 * corners[3 * f + 1],
      c = 3 * corners[3 * f + 2];
    const s = bary[2 * i] / 65535,
      t = bary[2 * i + 1] / 65535,
      u = 1 - s - t;
    let x = offsets[3 * i],
      y = offsets[3 * i + 1],
      z = offsets[3 * i + 2];
    for (let k = 0, at = 3 * basis * i; k < 3 * basis; k += 3) {
      x += amounts[k] * moves[at + k];
      y += amounts[k + 1] * moves[at + k + 1];
      z += amounts[k + 2] * moves[at + k + 2];
    }
    let along = 0,
      squared = 0;
    for (let d = 0; d < 3; d++) {
      const point = s * vertices[a + d] + t * vertices[b + d] + u * vertices[c + d];
      means[4 * i + d] = point + frames[R + 3 * d] * x + frames[R + 3 * d + 1] * y + frames[R + 3 * d + 2] * z;
      const away = eye[d] - point;
      along += away * frames[R + 3 * d + 2];
      squared += away * away;
    }
    const facing = along / Math.sqrt(squared);
    means[4 * i + 3] = g.oneSided ? Math.max(0, Math.min(1, (facing + 0.3) / 0.2)) : 1;
  }
}

// The order from back to front of those that can be seen, counted into 65,536 steps of depth; how many they are.
function sort(g, view) {
  const { means, opacities, depths, keys, buckets, order, seen } = g;
  let least = Infinity,
    most = -Infinity,
    count = 0;
  for (let i = 0; i < g.n; i++) {
    if (means[4 * i + 3] * opacities[i] < 1 / 255) continue;
    const depth = view[8] * means[4 * i] + view[9] * means[4 * i + 1] + view[10] * means[4 * i + 2];
    depths[count] = depth;
    seen[count++] = i;
    if (depth < least) least = depth;
    if (depth > most) most = depth;
  }
  const scale = 65535 / Math.max(most - least, 1e-9);
  buckets.fill(0);
  for (let i = 0; i < count; i++) {
    keys[i] = (most - depths[i]) * scale;
    buckets[keys[i] + 1]++;
  }
  for (let b = 0; b < 65536; b++) buckets[b + 1] += buckets[b];
  for (let i = 0; i < count; i++) order[buckets[keys[i]]++] = seen[i];
  return count;
}
