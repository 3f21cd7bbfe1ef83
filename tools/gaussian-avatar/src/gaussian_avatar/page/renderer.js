// Gaussians to pixels in WebGL 2, as recon4d.splat.rasterize projects and blends them.
//
// Three passes: `shapes` blends rotations and colours and projects, a pixel for each Gaussian; `splats` draws a
// rectangle for each, back to front; `screen` puts the picture over the background.

const COLUMNS = 512; // of textures that hold a pixel for each Gaussian
const SHAPES = `
uniform isampler2DArray quatBasis, colourBasis;
uniform sampler2D quats, scales, colours, faceTurns, means;
uniform vec4 quatWeights[BASIS];
uniform vec3 colourWeights[BASIS];
layout(location = 0) out vec4 colour;
layout(location = 1) out vec4 ellipse; // centre, and the longer half axis as far as it can be seen, pixels
layout(location = 2) out vec4 form; // conic, and the length of the shorter half axis
uniform mat4 view;
uniform vec4 lens; // fx, fy, cx, cy in pixels
uniform vec2 size;
ivec2 place(int i) { return ivec2(i % COLUMNS, i / COLUMNS); }
void main() {
  ivec2 at = ivec2(gl_FragCoord.xy);
  vec4 q = texelFetch(quats, at, 0), c = texelFetch(colours, at, 0), s = texelFetch(scales, at, 0);
  vec3 sh0 = c.rgb;
  for (int k = 0; k < BASIS; k++) {
    q += quatWeights[k] * vec4(texelFetch(quatBasis, ivec3(at, k), 0));
    sh0 += colourWeights[k] * vec3(texelFetch(colourBasis, ivec3(at, k), 0).rgb);
  }
  vec4 p = texelFetch(faceTurns, place(int(c.a)), 0); // wxyz in xyzw
  vec4 t = vec4(
    p.x * q.x - p.y * q.y - p.z * q.z - p.w * q.w,
    p.x * q.y + p.y * q.x + p.z * q.w - p.w * q.z,
    p.x * q.z - p.y * q.w + p.z * q.x + p.w * q.y,
    p.x * q.w + p.y * q.z - p.z * q.y + p.w * q.x);
  t /= max(length(t), 1e-12);
  float w = t.x, x = t.y, y = t.z, z = t.w;
  mat3 M = mat3(
    1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
    2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
    2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
  s.xyz *= dot(p, p); // larger with its triangle
  M[0] *= s.x; M[1] *= s.y; M[2] *= s.z;
  mat3 S = M * transpose(M);
  vec4 mean = texelFetch(means, at, 0);
  vec3 seen = (view * vec4(mean.xyz, 1.0)).xyz;
  colour = vec4(max(0.5 + SH0 * sh0, 0.0), s.w * mean.w);
  ellipse = form = vec4(0.0);
  vec2 margin = 0.15 * size / lens.xy;
  vec2 slope = clamp(seen.xy / seen.z, -lens.zw / lens.xy - margin, (size - lens.zw) / lens.xy + margin);
  vec2 f = lens.xy / seen.z;
  mat3 W = transpose(mat3(view));
  vec3 jx = W * vec3(f.x, 0.0, -f.x * slope.x), jy = W * vec3(0.0, f.y, -f.y * slope.y);
  float xx = dot(jx, S * jx) + 0.3, xy = dot(jx, S * jy), yy = dot(jy, S * jy) + 0.3;
  float det = xx * yy - xy * xy;
  if (seen.z < 0.01 || colour.a < 1.0 / 255.0 || !(det > 0.0)) return; // nothing of it is drawn
  // The ellipse on which it falls to 1/255.
  float reach = min(sqrt(2.0 * log(255.0 * colour.a)), 3.33);
  float middle = 0.5 * (xx + yy), apart = length(vec2(0.5 * (xx - yy), xy));
  vec2 axis = apart < 1e-6 ? vec2(1.0, 0.0) : xx > yy
    ? normalize(vec2(0.5 * (xx - yy) + apart, xy)) : normalize(vec2(xy, apart - 0.5 * (xx - yy)));
  ellipse = vec4(f * seen.xy + lens.zw, (reach * sqrt(middle + apart) + 0.01) * axis);
  form = vec4(vec3(yy, -xy, xx) / det, reach * sqrt(max(middle - apart, 0.0)) + 0.01);
}`;
const CORNERS = `
uniform highp usampler2D order;
uniform sampler2D colours, ellipses, forms;
uniform vec2 size;
flat out vec2 centre;
flat out vec3 conic;
flat out vec4 colour;
void main() {
  int rank = gl_VertexID >> 2;
  int index = int(texelFetch(order, ivec2(rank % COLUMNS, rank / COLUMNS), 0).r);
  ivec2 at = ivec2(index % COLUMNS, index / COLUMNS);
  vec4 ellipse = texelFetch(ellipses, at, 0), form = texelFetch(forms, at, 0);
  colour = texelFetch(colours, at, 0);
  centre = ellipse.xy;
  conic = form.xyz;
  vec2 longer = ellipse.zw, shorter = form.w * vec2(-longer.y, longer.x) / max(length(longer), 1e-6);
  vec2 corner = vec2(gl_VertexID & 1, (gl_VertexID >> 1) & 1) * 2.0 - 1.0;
  vec2 pixel = centre + corner.x * longer + corner.y * shorter;
  gl_Position = vec4(2.0 * pixel / size - 1.0, 0.0, 1.0);
}`;
const SPLATS = `
flat in vec2 centre;
flat in vec3 conic;
flat in vec4 colour;
layout(location = 0) out vec4 result;
void main() {
  vec2 d = gl_FragCoord.xy - centre; // rows count from the top: the screen turns them over
  float alpha = min(colour.a * exp(-0.5 * (conic.x * d.x * d.x + conic.z * d.y * d.y) - conic.y * d.x * d.y), 0.999);
  if (alpha < 1.0 / 255.0) discard;
  result = vec4(colour.rgb * alpha, alpha);
}`;
const WHOLE = `
void main() { gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0.0, 1.0); }`;
const SCREEN = `
uniform sampler2D picture;
uniform vec4 background;
layout(location = 0) out vec4 result;
void main() {
  ivec2 at = ivec2(gl_FragCoord.xy);
  vec4 seen = texelFetch(picture, ivec2(at.x, textureSize(picture, 0).y - 1 - at.y), 0);
  result = clamp(seen + (1.0 - seen.a) * background, 0.0, 1.0);
}`;

function newRenderer(canvas, g) {
  const gl = canvas.getContext("webgl2", {
    alpha: true,
    antialias: false,
    depth: false,
    powerPreference: "high-performance",
  });
  if (!gl) throw new Error("this browser has no WebGL 2");
  if (!gl.getExtension("EXT_color_buffer_float")) throw new Error("this browser's WebGL 2 cannot draw into floats");
  const rows = Math.max(1, Math.ceil(g.n / COLUMNS)),
    faceRows = Math.max(1, Math.ceil(g.faceTurns.length / 4 / COLUMNS));
  const kind = g.quatBasis instanceof Int8Array ? [gl.RGBA8I, gl.BYTE] : [gl.RGBA16I, gl.SHORT];
  const fixed = {
    quatBasis: arrayTexture(gl, rows, g.basis, g.n, 4, g.quatBasis, kind),
    colourBasis: arrayTexture(gl, rows, g.basis, g.n, 3, g.colourBasis, kind),
    quats: floats(
      gl,
      rows,
      filled(rows, g.n, (i, to) => to.set(g.quats.subarray(4 * i, 4 * i + 4))),
    ),
    scales: floats(
      gl,
      rows,
      filled(rows, g.n, (i, to) => {
        for (let c = 0; c < 3; c++) to[c] = Math.exp(g.logScales[3 * i + c]);
        to[3] = g.opacities[i];
      }),
    ),
    colours: floats(
      gl,
      rows,
      filled(rows, g.n, (i, to) => {
        to.set(g.colours.subarray(3 * i, 3 * i + 3));
        to[3] = g.faceOf[i];
      }),
    ),
  };
  const moving = { means: floats(gl, rows, null), faceTurns: floats(gl, faceRows, null) };
  const order = storage(gl, gl.R32UI, COLUMNS, rows);
  const made = [0, 1, 2].map(() => storage(gl, gl.RGBA32F, COLUMNS, rows));
  const define = { BASIS: g.basis, COLUMNS, SH0: 0.28209479177387814 };
  // All rectangles in one piece, not an instance each: those cost more than their pixels do.
  const array = gl.createVertexArray();
  gl.bindVertexArray(array);
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  const triangles = new Uint32Array(6 * g.n);
  for (let i = 0; i < g.n; i++) triangles.set([4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 2, 4 * i + 1, 4 * i + 3], 6 * i);
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, triangles, gl.STATIC_DRAW);
  return {
    gl,
    g,
    rows,
    fixed,
    moving,
    made,
    array,
    order,
    shapes: program(gl, WHOLE, SHAPES, define),
    splats: program(gl, CORNERS, SPLATS, define),
    screen: program(gl, WHOLE, SCREEN, define),
    shapeTarget: target(gl, made),
    picture: null,
    pictureTarget: null,
  };
}

// A texture of float quadruples, `rows` of COLUMNS.
function floats(gl, rows, values) {
  const texture = storage(gl, gl.RGBA32F, COLUMNS, rows);
  if (values) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, COLUMNS, rows, gl.RGBA, gl.FLOAT, values);
  return texture;
}

function filled(rows, n, fill) {
  const values = new Float32Array(4 * COLUMNS * rows);
  for (let i = 0; i < n; i++) fill(i, values.subarray(4 * i, 4 * i + 4));
  return values;
}

function storage(gl, format, width, height) {
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texStorage2D(gl.TEXTURE_2D, 1, format, width, height);
  nearest(gl, gl.TEXTURE_2D);
  return texture;
}

function nearest(gl, kind) {
  for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(kind, name, gl.NEAREST);
}

// Whole numbers (layers, n, width) as layers of a texture of quadruples.
function arrayTexture(gl, rows, layers, n, width, values, [format, type]) {
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D_ARRAY, texture);
  gl.texStorage3D(gl.TEXTURE_2D_ARRAY, 1, format, COLUMNS, rows, layers);
  nearest(gl, gl.TEXTURE_2D_ARRAY);
  const layer = new values.constructor(4 * COLUMNS * rows);
  for (let k = 0; k < layers; k++) {
    for (let i = 0; i < n; i++) for (let c = 0; c < width; c++) layer[4 * i + c] = values[(k * n + i) * width + c];
    gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, 0, 0, k, COLUMNS, rows, 1, gl.RGBA_INTEGER, type, layer);
  }
  return texture;
}

function target(gl, textures) {
  const buffer = gl.createFramebuffer();
  gl.bindFramebuffer(gl.FRAMEBUFFER, buffer);
  const places = textures.map((texture, i) => {
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0 + i, gl.TEXTURE_2D, texture, 0);
    return gl.COLOR_ATTACHMENT0 + i;
  });
  gl.drawBuffers(places);
  return buffer;
}

function program(gl, vertex, fragment, define) {
  const head = [
    "#version 300 es",
    "precision highp float;",
    "precision highp int;",
    "precision highp sampler2D;",
    "precision highp isampler2DArray;",
    ...Object.entries(define).map(([key, value]) => `#define ${key} ${value}`),
  ];
  const made = gl.createProgram();
  for (const [kind, text] of [
    [gl.VERTEX_SHADER, vertex],
    [gl.FRAGMENT_SHADER, fragment],
  ]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, `${head.join("\n")}\n${text}`);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const places = {};
  for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); i++) {
    const name = gl.getActiveUniform(made, i).name.replace("[0]", "");
    places[name] = gl.getUniformLocation(made, name);
  }
  return { made, places };
}

// Use a program with these textures, each on a unit of its own.
function use(gl, { made, places }, textures) {
  gl.useProgram(made);
  Object.entries(textures).forEach(([name, texture], unit) => {
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(name.endsWith("Basis") ? gl.TEXTURE_2D_ARRAY : gl.TEXTURE_2D, texture);
    gl.uniform1i(places[name], unit);
  });
}

// The first `count` quadruples of floats, or whole numbers one by one, into a texture.
function upload(gl, texture, values, count) {
  const [format, type, width] =
    values instanceof Float32Array ? [gl.RGBA, gl.FLOAT, 4] : [gl.RED_INTEGER, gl.UNSIGNED_INT, 1];
  gl.activeTexture(gl.TEXTURE0);
  gl.bindTexture(gl.TEXTURE_2D, texture);
  const whole = Math.floor(count / COLUMNS),
    rest = count % COLUMNS;
  if (whole) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, COLUMNS, whole, format, type, values);
  if (rest) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, whole, rest, 1, format, type, values, width * COLUMNS * whole);
}

// The first `count` Gaussians of the order on the canvas. camera: view (16, row by row), lens, width, height.
function draw(r, weights, camera, count, background) {
  const { gl, g } = r,
    { width, height } = camera;
  if (!r.picture || r.width !== width || r.height !== height) {
    if (r.picture) {
      gl.deleteTexture(r.picture);
      gl.deleteFramebuffer(r.pictureTarget);
    }
    r.picture = storage(gl, gl.RGBA8, width, height);
    r.pictureTarget = target(gl, [r.picture]);
    [r.width, r.height] = [width, height];
  }
  upload(gl, r.moving.means, g.means, g.n);
  upload(gl, r.moving.faceTurns, g.faceTurns, g.faceTurns.length / 4);
  upload(gl, r.order, g.order, count);
  gl.bindVertexArray(r.array);

  gl.disable(gl.BLEND);
  gl.bindFramebuffer(gl.FRAMEBUFFER, r.shapeTarget);
  gl.viewport(0, 0, COLUMNS, r.rows);
  use(gl, r.shapes, { ...r.fixed, ...r.moving });
  gl.uniform4fv(
    r.shapes.places.quatWeights,
    g.quatScales.map((scale, i) => scale * weights[i >> 2]),
  );
  gl.uniform3fv(
    r.shapes.places.colourWeights,
    g.colourScales.map((scale, i) => scale * weights[Math.floor(i / 3)]),
  );
  gl.uniformMatrix4fv(r.shapes.places.view, true, camera.view);
  gl.uniform4fv(r.shapes.places.lens, camera.lens);
  gl.uniform2f(r.shapes.places.size, width, height);
  gl.drawArrays(gl.TRIANGLES, 0, 3);

  gl.bindFramebuffer(gl.FRAMEBUFFER, r.pictureTarget);
  gl.viewport(0, 0, width, height);
  gl.clearColor(0, 0, 0, 0);
  gl.clear(gl.COLOR_BUFFER_BIT);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  const [colours, ellipses, forms] = r.made;
  use(gl, r.splats, { order: r.order, colours, ellipses, forms });
  gl.uniform2f(r.splats.places.size, width, height);
  gl.drawElements(gl.TRIANGLES, 6 * count, gl.UNSIGNED_INT, 0);

  gl.disable(gl.BLEND);
  gl.bindFramebuffer(gl.FRAMEBUFFER, null);
  gl.viewport(0, 0, width, height);
  use(gl, r.screen, { picture: r.picture });
  gl.uniform4fv(r.screen.places.background, background);
  gl.drawArrays(gl.TRIANGLES, 0, 3);
}
