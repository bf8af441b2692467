import { basename } from './paths';

/** How well `query` fits `path`: higher is better, null is not at all. Letters must come in order. */
export function score(query: string, path: string): number | null {
  const wanted = query.toLowerCase().replaceAll(' ', '');
  if (!wanted) return 0;
  const low = path.toLowerCase();
  const name = basename(low);
  const inName = name.indexOf(wanted);
  if (inName >= 0) return 1000 - inName * 4 - (name.length - wanted.length) - path.length / 100;
  let total = 0;
  let at = -1;
  for (const letter of wanted) {
    const next = low.indexOf(letter, at + 1);
    if (next < 0) return null;
    const starts = next === 0 || '/._- '.includes(low[next - 1]!);
    total += starts ? 10 : next === at + 1 ? 6 : 1;
    at = next;
  }
  return total - path.length / 100;
}

export function rank(query: string, paths: readonly string[], most = 50): string[] {
  return paths
    .map((path) => ({ path, fit: score(query, path) }))
    .filter((found): found is { path: string; fit: number } => found.fit !== null)
    .sort((a, b) => b.fit - a.fit || a.path.localeCompare(b.path))
    .slice(0, most)
    .map((found) => found.path);
}
