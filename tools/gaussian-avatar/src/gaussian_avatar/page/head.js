// The head model of one person: blendshapes, joints, skinning. As recon4d.head.HeadModel.forward, which see.
//
// Its columns are the expressions, 36 correctives of the joints' turns and two eyelids; each lists the vertices that
// it moves (counts, places) and how (moves, whole numbers of columnScales metres).

const PARENTS = [-1, 0, 1, 1, 1];

function newHead(content) {
  const { template, joints, jointBasis, weights, counts, places, moves, columnScales, expressions } = content;
  const starts = [0];
  for (const count of counts) starts.push(starts[starts.length - 1] + count);
  return {
    template,
    joints,
    jointBasis,
    weights,
    places,
    moves,
    columnScales,
    starts,
    expressions,
    vertices: new Float32Array(template.length),
  };
}

// Where the neck's joint is for an expression: neither turns nor translation move it.
function neckJoint(head, expression) {
  return jointsOf(head, expression).slice(3, 6);
}

function jointsOf(head, expression) {
  const joints = Float64Array.from(head.joints),
    n = head.expressions;
  for (let i = 0; i < 15; i++) for (let e = 0; e < n; e++) joints[i] += head.jointBasis[i * n + e] * expression[e];
  return joints;
}

// Posed vertices (V, 3) into head.vertices. turns: neck, jaw, left and right eye.
function pose(head, expression, turns, eyelids, translation) {
  const amounts = [...expression];
  for (const R of turns) for (let i = 0; i < 9; i++) amounts.push(R[i] - IDENTITY[i]);
  amounts.push(...eyelids);
  const { vertices, starts, places, moves, columnScales, weights } = head;
  vertices.set(head.template);
  for (let c = 0; c + 1 < starts.length; c++) {
    const amount = amounts[c] * columnScales[c];
    if (amount === 0) continue;
    for (let i = starts[c]; i < starts[c + 1]; i++) {
      const v = 3 * places[i];
      vertices[v] += amount * moves[3 * i];
      vertices[v + 1] += amount * moves[3 * i + 1];
      vertices[v + 2] += amount * moves[3 * i + 2];
    }
  }
  const joints = jointsOf(head, expression);
  const rotations = [IDENTITY],
    places3 = [Array.from(joints.slice(0, 3))];
  for (let j = 1; j < 5; j++) {
    const parent = PARENTS[j];
    const offset = [0, 1, 2].map((c) => joints[3 * j + c] - joints[3 * parent + c]);
    const moved = apply(rotations[parent], offset);
    rotations.push(multiply(rotations[parent], turns[j - 1]));
    places3.push(moved.map((value, c) => value + places3[parent][c]));
  }
  const chain = new Float64Array(60); // of each joint: its rotation and what then is added
  for (let j = 0; j < 5; j++) {
    const turned = apply(rotations[j], joints.slice(3 * j, 3 * j + 3));
    for (let r = 0; r < 3; r++) {
      for (let c = 0; c < 3; c++) chain[12 * j + 4 * r + c] = rotations[j][3 * r + c];
      chain[12 * j + 4 * r + 3] = places3[j][r] - turned[r] + translation[r];
    }
  }
  const m = new Float64Array(12);
  for (let v = 0; v < vertices.length / 3; v++) {
    m.fill(0);
    for (let j = 0; j < 5; j++) {
      const weight = weights[5 * v + j];
      if (weight !== 0) for (let i = 0; i < 12; i++) m[i] += weight * chain[12 * j + i];
    }
    const x = vertices[3 * v],
      y = vertices[3 * v + 1],
      z = vertices[3 * v + 2];
    vertices[3 * v] = m[0] * x + m[1] * y + m[2] * z + m[3];
    vertices[3 * v + 1] = m[4] * x + m[5] * y + m[6] * z + m[7];
    vertices[3 * v + 2] = m[8] * x + m[9] * y + m[10] * z + m[11];
  }
  return vertices;
}
