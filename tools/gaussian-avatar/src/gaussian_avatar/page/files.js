// Files of others, read: npz, Live Link Face's CSV, MediaPipe's JSON.

// The arrays of an npz file by name: { shape, values }.
async function readNpz(buffer) {
  const view = new DataView(buffer),
    arrays = {};
  let end = buffer.byteLength - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("is no npz file");
  let at = view.getUint32(end + 16, true);
  for (let entry = 0; entry < view.getUint16(end + 10, true); entry++) {
    const method = view.getUint16(at + 10, true),
      size = view.getUint32(at + 20, true),
      named = view.getUint16(at + 28, true);
    const skip = view.getUint16(at + 30, true) + view.getUint16(at + 32, true),
      place = view.getUint32(at + 42, true);
    const name = new TextDecoder().decode(new Uint8Array(buffer, at + 46, named)).replace(/\.npy$/, "");
    at += 46 + named + skip;
    const start = place + 30 + view.getUint16(place + 26, true) + view.getUint16(place + 28, true);
    const bytes = new Uint8Array(buffer, start, size);
    arrays[name] = readNpy(method === 8 ? await inflated(bytes, "deflate-raw") : bytes.slice().buffer);
  }
  return arrays;
}

// One array; null where it holds no numbers.
function readNpy(buffer) {
  const view = new DataView(buffer),
    wide = view.getUint8(6) > 1;
  const length = wide ? view.getUint32(8, true) : view.getUint16(8, true),
    start = (wide ? 12 : 10) + length;
  const header = new TextDecoder("latin1").decode(new Uint8Array(buffer, wide ? 12 : 10, length));
  const kind = header.match(/'descr': *'([^']+)'/)?.[1],
    shape = header.match(/'shape': *\(([^)]*)\)/)?.[1];
  const reader = {
    "<f4": [4, "getFloat32"],
    "<f8": [8, "getFloat64"],
    "<i4": [4, "getInt32"],
    "<i8": [8, "getBigInt64"],
    "|b1": [1, "getUint8"],
    "|u1": [1, "getUint8"],
    "<u4": [4, "getUint32"],
    "<i2": [2, "getInt16"],
  }[kind];
  if (!reader || shape === undefined || /'fortran_order': *True/.test(header)) return null;
  const sizes = shape
    .split(",")
    .filter((word) => word.trim())
    .map(Number);
  const values = new Float64Array(sizes.reduce((a, b) => a * b, 1));
  for (let i = 0; i < values.length; i++) values[i] = Number(view[reader[1]](start + i * reader[0], true));
  return { shape: sizes, values };
}

// Activations of a face: { fps, frames: [{ values: {name: number}, head, jaw, eyes: [left, right] }] }, turns in
// degrees, null where they are not known.
function readCsv(text) {
  const [first, ...rows] = text
    .replace(/^\ufeff/, "")
    .split(/\r?\n/)
    .filter((line) => line.trim())
    .map((line) => line.split(","));
  const titles = first.map((title) => title.trim().toLowerCase());
  const number = (row, title) => (titles.includes(title) ? Number(row[titles.indexOf(title)]) : 0);
  const turned = (row, part) => ["yaw", "pitch", "roll"].map((axis) => number(row, part + axis) / RADIANS);
  const known = ARKIT.filter((name) => titles.includes(name.toLowerCase()));
  if (!known.length || !rows.length) throw new Error("has none of ARKit's names");
  const looking = rows.some((row) => [...turned(row, "lefteye"), ...turned(row, "righteye")].some(Boolean));
  const frames = rows.map((row) => ({
    values: Object.fromEntries(known.map((name) => [name, number(row, name.toLowerCase())])),
    head: turned(row, "head"),
    jaw: titles.includes("jawpitch") ? turned(row, "jaw") : null,
    eyes: looking ? [turned(row, "lefteye"), turned(row, "righteye")] : null,
  }));
  const seconds = titles.includes("timecode")
    ? rows.map((row) => row[titles.indexOf("timecode")].replace(/:[^:]*$/, ""))
    : [];
  const counts = [...new Set(seconds)].map((second) => seconds.filter((one) => one === second).length).slice(1, -1);
  return { fps: counts.sort((a, b) => a - b)[counts.length >> 1] ?? 60, frames };
}

function readJson(text) {
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    content = text
      .split("\n")
      .filter((line) => line.trim())
      .map((line) => JSON.parse(line));
  }
  const fps = content.fps ?? 30;
  const shapes = ["blendshapes", "face_blendshapes", "faceBlendshapes"],
    list = ["frames", ...shapes].map((key) => content[key]);
  const frames = Array.isArray(content) ? content : (list.find(Array.isArray) ?? [content]);
  let before = null;
  const found = frames.map((frame) => {
    const values = namesOf(shapes.map((key) => frame?.[key]).find((one) => one !== undefined) ?? frame);
    if (ARKIT.some((name) => name in values)) before = { values, head: headOf(frame), jaw: null, eyes: null };
    return before;
  });
  if (!before) throw new Error("has none of MediaPipe's blendshapes");
  return { fps, frames: found.map((frame) => frame ?? found.find(Boolean)) };
}

function namesOf(frame) {
  while (Array.isArray(frame) && (Array.isArray(frame[0]) || frame[0]?.categories)) frame = frame[0];
  const items = frame?.categories ?? frame ?? {};
  if (!Array.isArray(items))
    return Object.fromEntries(Object.entries(items).filter(([, value]) => Number.isFinite(value)));
  return Object.fromEntries(
    items.map((item) => [item?.categoryName ?? item?.category_name ?? item?.name, item?.score]),
  );
}

// Yaw, pitch and roll of MediaPipe's matrix, whose numbers go by rows or by columns.
function headOf(frame) {
  const given = ["facial_transformation_matrixes", "facialTransformationMatrixes", "matrix"]
    .map((key) => frame?.[key])
    .find(Boolean);
  const m = [given].flat(4).flatMap((one) => one?.data ?? one);
  if (m.length !== 16 || !m.every(Number.isFinite)) return [0, 0, 0];
  const size = Math.cbrt(
    Math.abs(
      m[0] * (m[5] * m[10] - m[6] * m[9]) - m[1] * (m[4] * m[10] - m[6] * m[8]) + m[2] * (m[4] * m[9] - m[5] * m[8]),
    ),
  );
  const R = [0, 1, 2, 4, 5, 6, 8, 9, 10].map((i) => m[i] / size);
  const columns =
    Math.max(...[12, 13, 14].map((i) => Math.abs(m[i]))) > Math.max(...[3, 7, 11].map((i) => Math.abs(m[i])));
  return angles(columns ? transposed(R) : R);
}
