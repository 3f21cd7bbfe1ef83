// What Python packed: a gzip stream of the length of a JSON text, that text, which lists them, and arrays.

const KINDS = {
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  float32: Float32Array,
  float64: Float64Array,
};

async function inflated(bytes, kind) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream(kind));
  return new Response(stream).arrayBuffer();
}

async function unpack(text) {
  const packed = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const buffer = await inflated(packed, "gzip");
  const length = new DataView(buffer).getUint32(0, true);
  const content = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  for (const { name, kind, count, offset } of content.arrays) {
    const start = 4 + length + offset;
    content[name] =
      kind === "float16"
        ? Float32Array.from(new Uint16Array(buffer, start, count), half)
        : new KINDS[kind](buffer, start, count);
  }
  return content;
}

// A number of 16 bits as IEEE 754 has it.
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1,
    exponent = (bits >> 10) & 31,
    fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
