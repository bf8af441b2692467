/** A person's colour: the same for a name everywhere and always. `strong` carries white text at AA
 *  and stands out as a line on the darkest editor. */
export interface PersonColor {
  strong: string;
  light: string;
}

const STRONG = [
  '#bc3c44', '#ae4e19', '#84660f', '#4b7520', '#197659', '#187388',
  '#2b69c3', '#5459d2', '#864dc8', '#a63ba2', '#b6376d', '#656973',
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
