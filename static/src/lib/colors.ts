/** A person's colour: the same for a name everywhere and always. `strong` carries white text at AA. */
export interface PersonColor {
  strong: string;
  light: string;
}

const STRONG = [
  '#b4232c', '#a8430b', '#7c5c00', '#3f6d12', '#0b6e4f', '#0a6b80',
  '#1d5fbf', '#4a4fd0', '#7a3cc2', '#a02f9c', '#b0245f', '#5b5f6b',
] as const;

export function colorOf(name: string): PersonColor {
  let hash = 2166136261;
  for (let i = 0; i < name.length; i += 1) hash = Math.imul(hash ^ name.charCodeAt(i), 16777619);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  const strong = STRONG[((hash ^ (hash >>> 16)) >>> 0) % STRONG.length]!;
  return { strong, light: `${strong}40` };
}

/** Up to two letters for an avatar. */
export function initials(name: string): string {
  const words = name.trim().split(/[\s._-]+/u).filter(Boolean);
  const letters = words.length > 1 ? [words[0]!, words.at(-1)!].map((w) => [...w][0]!) : [...(words[0] ?? '?')].slice(0, 1);
  return letters.join('').toLocaleUpperCase();
}
