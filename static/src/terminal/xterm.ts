import type { ITheme, Terminal } from '@xterm/xterm';

/** xterm and its parts, fetched when the first terminal is opened. */
export async function loadXterm() {
  const [core, fit, links, unicode, search] = await Promise.all([
    import('@xterm/xterm'),
    import('@xterm/addon-fit'),
    import('@xterm/addon-web-links'),
    import('@xterm/addon-unicode11'),
    import('@xterm/addon-search'),
    import('@xterm/xterm/css/xterm.css'),
  ]);
  return {
    Terminal: core.Terminal,
    FitAddon: fit.FitAddon,
    WebLinksAddon: links.WebLinksAddon,
    Unicode11Addon: unicode.Unicode11Addon,
    SearchAddon: search.SearchAddon,
  };
}

/** The page's colours, as xterm wants them. */
export function palette(): ITheme {
  const style = getComputedStyle(document.documentElement);
  const get = (name: string): string => style.getPropertyValue(name).trim();
  const ansi = (n: number): string => get(`--ansi-${n}`);
  return {
    background: get('--output-bg'),
    foreground: get('--text'),
    cursor: get('--text'),
    cursorAccent: get('--output-bg'),
    selectionBackground: get('--editor-selection'),
    black: ansi(0),
    red: ansi(1),
    green: ansi(2),
    yellow: ansi(3),
    blue: ansi(4),
    magenta: ansi(5),
    cyan: ansi(6),
    white: ansi(7),
    brightBlack: ansi(8),
    brightRed: ansi(9),
    brightGreen: ansi(10),
    brightYellow: ansi(11),
    brightBlue: ansi(12),
    brightMagenta: ansi(13),
    brightCyan: ansi(14),
    brightWhite: ansi(15),
  };
}

/**
 * A program's questions to the terminal (what are you, where is the cursor, which colours) are answered by one
 * window only: `mayAnswer` says whether by this one. The handlers swallow the question elsewhere.
 */
export function swallowQueries(t: Terminal, mayAnswer: () => boolean): void {
  const swallow = (): boolean => !mayAnswer();
  const p = t.parser;
  for (const prefix of ['', '>', '='] as const) {
    p.registerCsiHandler(prefix ? { prefix, final: 'c' } : { final: 'c' }, swallow);
  }
  p.registerCsiHandler({ final: 'n' }, swallow);
  p.registerCsiHandler({ prefix: '?', final: 'n' }, swallow);
  p.registerCsiHandler({ intermediates: '$', final: 'p' }, swallow);
  p.registerCsiHandler({ prefix: '?', intermediates: '$', final: 'p' }, swallow);
  p.registerCsiHandler({ prefix: '>', final: 'q' }, swallow);
  p.registerDcsHandler({ intermediates: '$', final: 'q' }, swallow);
  for (const osc of [4, 10, 11, 12]) p.registerOscHandler(osc, (data) => data.includes('?') && !mayAnswer());
  // the clipboard is the person's: programs neither read nor write it
  p.registerOscHandler(52, () => true);
}
