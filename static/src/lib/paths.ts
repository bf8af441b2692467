/** Paths inside a project: relative, `/` between the segments, `''` is the root. */

export const basename = (path: string): string => path.slice(path.lastIndexOf('/') + 1);

export const dirname = (path: string): string => {
  const at = path.lastIndexOf('/');
  return at < 0 ? '' : path.slice(0, at);
};

export const join = (folder: string, name: string): string => (folder ? `${folder}/${name}` : name);

/**
 * One segment percent-encoded. Names of files are bytes: those that are no UTF-8 reach us as the lone surrogates
 * U+DC80 to U+DCFF (Python's PEP 383) and go back as the bytes that they stand for.
 */
const encodeSegment = (name: string): string =>
  [...name]
    .map((char) => {
      const code = char.length === 1 ? char.charCodeAt(0) : 0;
      if (code >= 0xdc80 && code <= 0xdcff) return `%${(code - 0xdc00).toString(16).toUpperCase()}`;
      return encodeURIComponent(code >= 0xd800 && code <= 0xdfff ? '\ufffd' : char);
    })
    .join('');

/** Each segment percent-encoded: what stands in addresses and is a room's name. */
export const encodePath = (path: string): string => path.split('/').map(encodeSegment).join('/');

/** A name as it is shown: what is no text, or would break the line or turn its direction, as one visible sign. */
export const shown = (name: string): string =>
  name
    .replace(/\n/g, '↵')
    // eslint-disable-next-line no-control-regex
    .replace(/[\0-\x1f\x7f\u202a-\u202e\u2066-\u2069]/g, '\ufffd')
    .replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, '\ufffd');

export const extension = (path: string): string => {
  const name = basename(path);
  const at = name.lastIndexOf('.');
  return at <= 0 ? '' : name.slice(at + 1).toLowerCase();
};

export const isInside = (path: string, folder: string): boolean =>
  folder === '' || path === folder || path.startsWith(`${folder}/`);

/** Where `path` stands after `from` has become `to`; null when it was not touched. */
export const moved = (path: string, from: string, to: string): string | null => {
  if (path === from) return to;
  return path.startsWith(`${from}/`) ? to + path.slice(from.length) : null;
};

/** Why a name cannot be given to a file or folder; null when it can. Slashes make folders on the way. */
export const nameProblem = (name: string): string | null => {
  const clean = name.trim();
  if (!clean) return 'Give it a name.';
  if (clean.startsWith('/') || clean.endsWith('/')) return 'A name cannot begin or end with a slash.';
  if (/[\0-\x1f\x7f]/.test(clean)) return 'A name cannot hold line breaks or control characters.';
  for (const part of clean.split('/')) {
    if (!part) return 'Two slashes follow each other.';
    if (part === '.' || part === '..') return `“${part}” is not a name.`;
    if (new TextEncoder().encode(part).length > 255) return 'That name is too long (255 bytes at most).';
  }
  return null;
};

/** Folders first, then by name as people read numbers. */
export const byName = (
  a: { name: string; type: string },
  b: { name: string; type: string },
): number => {
  if ((a.type === 'directory') !== (b.type === 'directory')) return a.type === 'directory' ? -1 : 1;
  return a.name.localeCompare(b.name, 'en', { numeric: true, sensitivity: 'base' }) || (a.name < b.name ? -1 : 1);
};
