// Frames to an animated GIF (89a): the 256 colours that are met most, and Lempel-Ziv-Welch.
function gif(frames, width, height, hundredths) {
  const key = (d, i) => (d[i] >> 3 << 10) | (d[i + 1] >> 3 << 5) | (d[i + 2] >> 3);
  const count = new Map();
  for (const d of frames) for (let i = 0; i < d.length; i += 4) { const q = key(d, i); count.set(q, (count.get(q) || 0) + 1); }
  const palette = [...count].sort((a, b) => b[1] - a[1]).slice(0, 256).map(([q]) => q);
  const parts = (q) => [q >> 10, q >> 5 & 31, q & 31], near = new Map(palette.map((q, i) => [q, i]));
  const index = (q) => {
    if (!near.has(q)) {
      const [r, g, b] = parts(q);
      let best = 0, least = Infinity;
      palette.forEach((p, i) => { const [x, y, z] = parts(p), d = (x - r) ** 2 + (y - g) ** 2 + (z - b) ** 2; if (d < least) { least = d; best = i; } });
      near.set(q, best);
    }
    return near.get(q);
  };
  const bytes = [], word = (n) => bytes.push(n & 255, n >> 8);
  bytes.push(...[..."GIF89a"].map((c) => c.charCodeAt(0))); word(width); word(height); bytes.push(0xf7, 0, 0);
  for (let i = 0; i < 256; i++) bytes.push(...(i < palette.length ? parts(palette[i]).map((v) => Math.round(v * 255 / 31)) : [0, 0, 0]));
  bytes.push(0x21, 0xff, 11, ...[..."NETSCAPE2.0"].map((c) => c.charCodeAt(0)), 3, 1, 0, 0, 0); // for ever
  frames.forEach((d, f) => {
    bytes.push(0x21, 0xf9, 4, 4); word(f + 1 < frames.length ? hundredths : 150); bytes.push(0, 0);
    bytes.push(0x2c); word(0); word(0); word(width); word(height); bytes.push(0, 8);
    const code = lzw(d.length / 4, (i) => index(key(d, 4 * i)));
    for (let i = 0; i < code.length; i += 255) { const block = code.subarray(i, i + 255); bytes.push(block.length, ...block); }
    bytes.push(0);
  });
  bytes.push(0x3b);
  return new Uint8Array(bytes);
}
function lzw(length, at) {
  const out = [];
  let held = 0, bits = 0, size = 9, table = new Map(), next = 258;
  const emit = (code) => { held |= code << bits; bits += size; while (bits >= 8) { out.push(held & 255); held >>= 8; bits -= 8; } };
  emit(256);
  let prefix = at(0);
  for (let i = 1; i < length; i++) {
    const byte = at(i), both = prefix << 8 | byte;
    if (table.has(both)) { prefix = table.get(both); continue; }
    emit(prefix);
    if (next === 4096) { emit(256); table = new Map(); next = 258; size = 9; } else { table.set(both, next); if (next++ === 1 << size) size++; }
    prefix = byte;
  }
  emit(prefix); emit(257);
  if (bits) out.push(held & 255);
  return Uint8Array.from(out);
}
